"""Generators and discriminators by architecture. Shapes only: no file is touched, no image drawn."""
