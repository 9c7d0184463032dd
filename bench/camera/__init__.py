"""How the camera keeps up."""
