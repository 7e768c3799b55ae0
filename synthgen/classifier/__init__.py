"""The downstream classifier: arms, training and prediction, the same steps and weights for every arm."""
