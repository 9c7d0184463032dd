"""What the camera writes and shows: overlay, recording, events."""
