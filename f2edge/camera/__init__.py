"""Structured descriptions of live faces, on the device: ``f2edge camera``.

Frames pass four stages: capture → detect and track → describe → show, write and record.  For a live source each stage runs in its own
thread; stages are connected by slots that keep only the newest item, so a slow stage skips frames instead of falling behind.
"""

from threading import Thread
from weakref import WeakSet

#: Threads that read a source.  One that hangs in its driver cannot be stopped, and the interpreter cannot shut down normally beside it.
READ_THREADS: WeakSet[Thread] = WeakSet()
