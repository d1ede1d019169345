"""What trained models are used for: translation and masked tokens."""
