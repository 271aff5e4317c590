# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2034 # variables here are for the cases
# What every numbered case sources: TAP helpers, a scratch folder, the programs under test and the
# programs of the reference. A case is a bash script that ends with `done_testing`; it runs on its
# own (`tests/qemu-iotests/001`) or under prove. A line `# variants: threads` in a case's head makes
# the runner repeat it on the threads engine and with the smallest metadata caches.

set -u
TESTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOP=$(cd "$TESTS/../.." && pwd)
BUILD=${BUILD:-$TOP/build}
QEMU_IMG=${QEMU_IMG:-$BUILD/bin/qemu-img}
QEMU_IO=${QEMU_IO:-$BUILD/bin/qemu-io}
REF_IMG=${REF_IMG:-$(command -v qemu-img || true)}
REF_IO=${REF_IO:-$(command -v qemu-io || true)}
TEST_CACHE=${TEST_CACHE:-}
export LC_ALL=C

CASE=$(basename "$0")
SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/drover-$CASE.XXXXXX") || exit 1
cleanup_commands=()
cleanup() {
	local command
	for command in "${cleanup_commands[@]+"${cleanup_commands[@]}"}"; do
		eval "$command"
	done
	cd / && rm -rf "$SCRATCH"
}
trap cleanup EXIT
trap 'exit 143' TERM INT
at_exit() { # COMMAND: run it when the case ends
	cleanup_commands+=("$1")
}
cd "$SCRATCH" || exit 1

# --- TAP --------------------------------------------------------------------------------------

test_count=0
failed_count=0

diag() {
	printf '%s\n' "$@" | cut -c1-600 | sed 's/^/#   /'
}

pass() { # NAME
	test_count=$((test_count + 1))
	echo "ok $test_count - $1"
}

fail() { # NAME [DIAGNOSIS...]
	test_count=$((test_count + 1))
	failed_count=$((failed_count + 1))
	echo "not ok $test_count - $1"
	shift
	[ $# -eq 0 ] || diag "$@"
}

skip() { # NAME REASON: tests/skips must name it
	test_count=$((test_count + 1))
	echo "ok $test_count - $1 # SKIP $2"
}

skip_all() { # REASON
	echo "1..0 # SKIP $1"
	exit 0
}

done_testing() {
	echo "1..$test_count"
	[ "$failed_count" -eq 0 ]
	exit
}

t() { # NAME COMMAND...: it succeeds
	local name=$1 output code
	shift
	output=$("$@" 2>&1)
	code=$?
	if [ $code -eq 0 ]; then
		pass "$name"
	else
		fail "$name" "command: $*" "exit code: $code" "output: ${output:0:2000}"
	fi
	return $code
}

is() { # NAME GOT WANTED
	if [ "$2" == "$3" ]; then
		pass "$1"
	else
		fail "$1" "got:    ${2:0:1500}" "wanted: ${3:0:1500}"
	fi
}

like() { # NAME GOT REGEX
	if [[ $2 =~ $3 ]]; then
		pass "$1"
	else
		fail "$1" "got:             ${2:0:1500}" "does not match:  $3"
	fi
}

unlike() { # NAME GOT REGEX
	if [[ $2 =~ $3 ]]; then
		fail "$1" "got:     ${2:0:1500}" "matches: $3"
	else
		pass "$1"
	fi
}

# NAME CODE REGEX COMMAND...: ends with the exit code; stderr matches, is one line and names itself.
refuses() {
	local name=$1 want=$2 regex=$3 output code
	shift 3
	output=$("$@" 2>&1 >stdout.refuses </dev/null)
	code=$?
	if [ $code -ne "$want" ]; then
		fail "$name" "command: $*" "exit code: $code, wanted $want" "stderr: ${output:0:1000}"
	elif ! [[ $output =~ $regex ]]; then
		fail "$name" "command: $*" "stderr: ${output:0:1000}" "does not match: $regex"
	elif [ "$(printf '%s\n' "$output" | wc -l)" -gt 2 ]; then
		fail "$name" "command: $*" "stderr is more than a sentence: ${output:0:1000}"
	else
		pass "$name"
	fi
}

exits() { # NAME CODE COMMAND...
	local name=$1 want=$2 output code
	shift 2
	output=$("$@" 2>&1 </dev/null)
	code=$?
	if [ $code -eq "$want" ]; then
		pass "$name"
	else
		fail "$name" "command: $*" "exit code: $code, wanted $want" "output: ${output:0:1000}"
	fi
}

# --- images -----------------------------------------------------------------------------------

img() {
	"$QEMU_IMG" "$@"
}

ref_img() {
	"$REF_IMG" "$@"
}

# Arguments that open FILE as qcow2, with the cache sizes of the run; as words in `opened`.
open_args() { # FILE [FORMAT]
	local format=${2:-qcow2}
	if [ "$format" == qcow2 ] && [ -n "$TEST_CACHE" ]; then
		opened=(--image-opts "driver=qcow2,file.filename=$1,$TEST_CACHE")
	else
		opened=(-f "$format" "$1")
	fi
}

# FILE COMMAND...: qemu-io commands on a qcow2 image; output on stdout, failures of commands too.
io() {
	local file=$1 args=() command
	shift
	for command; do
		args+=(-c "$command")
	done
	open_args "$file"
	"$QEMU_IO" "${args[@]}" "${opened[@]}" 2>&1
}

io_raw() {
	local file=$1 args=() command
	shift
	for command; do
		args+=(-c "$command")
	done
	"$QEMU_IO" -f raw "${args[@]}" "$file" 2>&1
}

ref_io() { # FILE COMMAND...
	local file=$1 args=() command
	shift
	for command; do
		args+=(-c "$command")
	done
	"$REF_IO" -f qcow2 "${args[@]}" "$file" 2>&1
}

writes() { # NAME FILE COMMAND...: the qemu-io commands all succeed
	local name=$1 output
	shift
	output=$(io "$@")
	if [ $? -eq 0 ] && ! grep -qE 'failed|error|rror:' <<<"$output"; then
		pass "$name"
	else
		fail "$name" "commands: $*" "${output:0:1500}"
	fi
}

# NAME FILE PATTERN OFFSET LENGTH [PATTERN OFFSET LENGTH]...: what both programs read there.
holds() {
	local name=$1 file=$2 commands=() output
	shift 2
	while [ $# -ge 3 ]; do
		commands+=("read -P $1 $2 $3")
		shift 3
	done
	output=$(io "$file" "${commands[@]}")
	if [ $? -ne 0 ] || grep -qE 'failed|rror:' <<<"$output"; then
		fail "$name" "ours: ${commands[*]}" "${output:0:1500}"
		return
	fi
	if [ -n "$REF_IO" ]; then
		output=$(ref_io "$file" "${commands[@]}")
		if [ $? -ne 0 ] || grep -qE 'failed|rror:' <<<"$output"; then
			fail "$name" "reference: ${commands[*]}" "${output:0:1500}"
			return
		fi
	fi
	pass "$name"
}

clean() { # NAME FILE: both programs' check find nothing, not even a leak
	local output code
	output=$(img check -f qcow2 "$2" 2>&1)
	code=$?
	if [ $code -ne 0 ]; then
		fail "$1" "our check: exit code $code" "${output:0:1500}"
		return
	fi
	if [ -n "$REF_IMG" ]; then
		output=$(ref_img check -f qcow2 "$2" 2>&1)
		code=$?
		if [ $code -ne 0 ]; then
			fail "$1" "the reference's check: exit code $code" "${output:0:1500}"
			return
		fi
	fi
	pass "$1"
}

same() { # NAME A B [FORMAT-OF-A [FORMAT-OF-B]]: equal content for both programs
	local output code
	output=$(img compare -f "${4:-qcow2}" -F "${5:-${4:-qcow2}}" "$2" "$3" 2>&1)
	code=$?
	if [ $code -ne 0 ]; then
		fail "$1" "our compare: exit code $code" "${output:0:500}"
		return
	fi
	if [ -n "$REF_IMG" ]; then
		output=$(ref_img compare -f "${4:-qcow2}" -F "${5:-${4:-qcow2}}" "$2" "$3" 2>&1)
		code=$?
		if [ $code -ne 0 ]; then
			fail "$1" "the reference's compare: exit code $code" "${output:0:500}"
			return
		fi
	fi
	pass "$1"
}

# EXPRESSION: evaluates Python with `d` as the JSON document on stdin; strings print bare.
json() {
	python3 -c '
import json, sys
text = sys.stdin.read()
try:
    d = json.loads(text)
    v = eval(sys.argv[1])
except Exception as e:
    sys.exit(print(f"{type(e).__name__}: {e}; the document: {text[:300]!r}"))
print(v if isinstance(v, str) else json.dumps(v, sort_keys=True))' "$1"
}

# FILE: the JSON of our info and map and of the reference's, without what may differ.
info_json() { # PROGRAM FILE
	"$1" info --output=json -f qcow2 "$2" | json '
{k: v for k, v in d.items() if k not in ("actual-size", "children", "filename")}'
}

map_json() { # PROGRAM FILE
	"$1" map --output=json -f qcow2 "$2" | json '
[[e["start"], e["length"], e["depth"], e["present"], e["zero"], e["data"], e.get("offset")]
 for e in d]'
}

field() { # FILE OFFSET SIZE: a big-endian number of a file
	od -A n -t u"$3" --endian=big -j "$2" -N "$3" "$1" | tr -d ' '
}

poke() { # FILE OFFSET HEX: plants bytes in a file
	# shellcheck disable=SC2059 # the escapes are the point
	printf "$(sed 's/../\\x&/g' <<<"$3")" |
		dd of="$1" bs=1 seek=$(($2)) conv=notrunc status=none
}

# FILE SIZE SEED: a file with data, zeroes, holes and compressible runs, the same for a seed.
random_file() {
	python3 "$TESTS/random-file" "$1" "$2" "$3"
}

needs_reference() {
	[ -n "$REF_IMG" ] && [ -n "$REF_IO" ] || skip_all "qemu-utils is not installed"
}
