#!/bin/sh
# Copies a data directory while the service runs: deploy/backup.sh DATA_DIR TO [REDIS_DIR]
# Where a bucket has the files, the queue alone: deploy/backup.sh --queue TO REDIS_DIR
# The order is what makes the copy whole; docs/backup.md says why, and how to restore it.
set -eu

data=$1 to=$2 redis=${3:-$1/redis}
umask 077
mkdir -p "$to"

# 1 of tar: a file changed or went while it was read, as they do. Whatever else is an error.
archive() { tar -C "$1" -cf "$to/$2" --exclude=./.tango/tmp "$3" || [ $? = 1 ]; }

# The queue. Its files are only ever added to, until Redis rewrites them and names others in its manifest.
manifest() { cat "$redis"/appendonlydir/*.manifest; }
queue() {
    while :; do
        before=$(manifest)
        archive "$redis" queue.tar ./appendonlydir
        after=$(manifest)
        [ "$before" = "$after" ] && break
        sleep 1
    done
}

if [ "$data" = --queue ]; then
    queue
else
    # What waiting jobs were given, before the queue: it is removed when they end.
    archive "$data/courselabs" pins.tar ./.tango/pins
    queue
    # Everything that the queue speaks of, and the mark above which job ids go on.
    archive "$data/courselabs" files.tar .
fi
sync "$to"/*.tar
