"""Self-test of a bundle on a device: every graph against a reference, alone and interleaved, timed, with a report for an issue."""
