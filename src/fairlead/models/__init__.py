"""Small reference networks, and the models that ship with the package."""
