"""Code for particular hardware, each behind one function, with the plain form that it is tested against."""
