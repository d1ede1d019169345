"""What is particular to one data set: builders for local files, and the small bundled sets."""
