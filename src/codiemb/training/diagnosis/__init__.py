"""Diagnosis: how far the tasks of a recipe pull a model in different directions, measured on their gradients."""
