"""The Flower ClientApp, and all it takes to deploy on an edge device."""
