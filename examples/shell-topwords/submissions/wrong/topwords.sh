# Knows nothing of capitals and punctuation, and leaves the order of equal counts to chance.
tr ' ' '\n' | LC_ALL=C sort | uniq -c | LC_ALL=C sort -s -k1,1nr | sed 's/^ *//' | head -n "$1"
