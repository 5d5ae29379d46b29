"""Demonstrations: made by the scripted experts or by people, kept in robomimic's HDF5, read as windows of actions."""
