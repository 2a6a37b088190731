"""The Flower ServerApp, and all it takes to deploy a server."""
