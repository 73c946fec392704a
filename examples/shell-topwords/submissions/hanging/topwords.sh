# Waits until there are as many words as were asked for.
case ${1-} in
'' | *[!0-9]*) exit 2 ;;
esac

words=$(tr '[:upper:]' '[:lower:]' | tr -cs '[:alnum:]' '\n' | sed '/^$/d' |
    LC_ALL=C sort | uniq -c | LC_ALL=C sort -k1,1nr -k2,2 | sed 's/^ *//')
count=$(printf '%s\n' "$words" | sed '/^$/d' | wc -l)
until [ "$count" -ge "$1" ]; do :; done
printf '%s\n' "$words" | head -n "$1"
