"""Runs jobs: claims them from the queue, one coroutine each, on machines that a VMMS makes."""
