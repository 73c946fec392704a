"""Tango's REST API over the queue and the file store.

`app` composes it, `routes` is its map; `courselabs`, `jobs` and `machines` answer. `admission`
decides what becomes a job, `requests` and `wire` alone know Tango's JSON names, `bodies` and `answers` move bytes,
`middleware` is what all requests have in common; `health` and `metrics` are for those who run it.
Nothing here runs a job or sees a machine: that is read from what dispatchers publish, and asked of
them through the queue.
"""
