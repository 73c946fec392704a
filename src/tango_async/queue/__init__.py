"""The one queue, against the Redis protocol: `redis` is its face, `keys` its map, `lua/` its arrows."""
