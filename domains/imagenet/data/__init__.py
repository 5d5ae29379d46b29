"""Training and held-out images of every kind behind one interface, `ImageData`."""
