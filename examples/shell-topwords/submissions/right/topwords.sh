# topwords.sh N: the N most frequent words of the standard input, most frequent first.
case ${1-} in
'' | *[!0-9]*)
    echo "usage: topwords.sh N" >&2
    exit 2
    ;;
esac

tr '[:upper:]' '[:lower:]' |
    tr -cs '[:alnum:]' '\n' |
    sed '/^$/d' |
    LC_ALL=C sort | uniq -c |
    LC_ALL=C sort -k1,1nr -k2,2 |
    sed 's/^ *//' |
    head -n "$1"
