# The grader: runs topwords.sh on each case and compares what it prints.
#
# The submission runs as the same user in the same directory, so nothing is read again after it has
# run: the shell has parsed all of main before it starts, and the expected outputs are in variables.

limit_s=${1:-20}
max_bytes=65536
passed_output=0 passed_usage=0 status=0 printed=

# run INPUT ARGUMENT… - sets `printed` (cut at max_bytes) and `status`
run() {
    input=$1
    shift
    printed=$(
        { printf '%s' "$input" | timeout -s KILL "$limit_s" sh topwords.sh "$@"; echo "status $?"; } 2>/dev/null |
            tail -c "$max_bytes" | tr -d '\000'
    )
    status=${printed##*status }
    printed=${printed%status *}
}

# output WHAT N INPUT EXPECTED
output() {
    echo "test: $1"
    run "$3" "$2"
    if [ "$status" = 0 ] && [ "$printed" = "$4${4:+$newline}" ]; then
        passed_output=$((passed_output + 1))
        echo "  passed"
    else
        explain
        printf '%s\n' "$4" | head -n 10 | sed 's/^/  expected: /'
        printf '%s' "$printed" | head -n 10 | sed 's/^/  printed:  /'
    fi
}

# refused WHAT ARGUMENT…
refused() {
    echo "test: $1"
    shift
    run "one two" "$@"
    if [ "$status" = 2 ] && [ -z "$printed" ]; then
        passed_usage=$((passed_usage + 1))
        echo "  passed"
    else
        explain
        echo "  expected: exit status 2 and no output"
    fi
}

explain() {
    case $status in
    137) echo "  FAILED: it did not come to an end" ;;
    *) echo "  FAILED: exit status $status" ;;
    esac
}

main() {
    newline='
'
    fox=$(cat fox.txt) || exit 1
    fox_5=$(cat fox-5.expected) || exit 1
    fox_all=$(cat fox-all.expected) || exit 1

    output "counts words" 2 "to be or to be or to be or not to" "4 to${newline}3 be"
    output "one word a line" 1 "a${newline}b${newline}a${newline}" "2 a"
    output "capitals make no difference" 1 "Stop stop STOP go" "3 stop"
    output "punctuation is no part of a word" 1 "go, go; (go) stop." "3 go"
    output "words with equal counts are sorted" 3 "pear fig apple" "1 apple${newline}1 fig${newline}1 pear"
    output "the first five of a text" 5 "$fox" "$fox_5"
    output "all words, although more are asked for" 1000 "$fox" "$fox_all"
    output "no words at all" 3 "" ""
    output "nothing but punctuation" 3 "... --- ..." ""
    refused "a missing number"
    refused "what is not a number" many

    echo
    echo "{\"scores\": {\"output\": $((passed_output * 90 / 9)), \"usage\": $((passed_usage * 10 / 2))}}"
    exit 0
}

main
