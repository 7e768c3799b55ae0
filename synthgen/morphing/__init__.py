"""Samples without a network: training images of a class, morphed into each other and deformed as others vary."""
