"""Live faces in, structured answers out, on the device: ``f2edge camera``.

Frames go through four stages, capture → detect and track → ask the model → show, write and record.  For a live source each stage runs in a
thread of its own and hands on through a slot of one place in which the newest wins, so nothing can fall behind: a slow stage skips.
"""

#: Name of the threads that read a source; one that hangs in its driver cannot be ended from outside.
READING = "camera-read"
