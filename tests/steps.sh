# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Steps for tests/run and .ci/run: a headline, a log, counts, and a table at the end.
#
#   step TITLE COMMAND...    run a command (a function may be one) with its output in a log
#   count PASSED FAILED      inside a step: cases that it has run
#   simulate BUILD BASE SEEDS   inside a step: so many runs of the simulator
#   threads BUILD SEED RUNS  inside a step: so many runs with threads, and their replays
#   against_qemu SEED SEEDS  inside a step: so many seeds of tests/e2e/differential
#   note TEXT                inside a step: what to say of it; the last one is in the table
#   steps_end                the table and the closing line; returns 1 if something failed

steps_logs=build/log
steps_table=()
steps_passed=0
steps_failed=0
steps_number=0
steps_start=$SECONDS
mkdir -p "$steps_logs"
steps_counts=$(mktemp)
steps_notes=$(mktemp)
export steps_counts steps_notes
trap 'rm -f "$steps_counts" "$steps_notes"' EXIT

count() { echo "$1 $2" >>"$steps_counts"; }
note() { echo "$*" >>"$steps_notes"; }

# Count the CMocka cases in the output of one or many programs.
count_cases() {
    local passed failed
    passed=$(awk '/\[  PASSED  \] [0-9]+ test/ { sub(/.*\] /, ""); n += $1 } END { print n + 0 }' "$1")
    failed=$(awk '/\[  FAILED  \] [0-9]+ test/ { sub(/.*\] /, ""); n += $1 } END { print n + 0 }' "$1")
    count "$passed" "$failed"
    note "$passed cases passed, $failed failed"
    [ $((passed + failed)) -gt 0 ] || { note "ran no test"; return 1; }
}

simulate() {
    local log=build/log/sim-$1 rc=0
    "build/$1/tests/blkrepl-sim" --jobs 2 --base "$2" --seeds "$3" >"$log" 2>&1 || rc=$?
    cat "$log"
    note "$1, base $2"
    grep -E '^[a-z]+[=:]' "$log" | while read -r line; do note "$line"; done
    note "$(grep ^seeds= "$log")"
    [ $rc -eq 0 ] || note "$(grep ^FAILED "$log" | head -n 1 | cut -c1-100)"
    return $rc
}

threads() {
    local log=build/log/threads-$1-$2 rc=0 plain=()
    # Without address randomisation, which some kernels overdo for ThreadSanitizer.
    if [ "$1" = tsan ] && setarch -R true 2>/dev/null; then
        plain=(setarch -R)
    fi
    "${plain[@]}" "build/$1/tests/blkrepl-threads" --seed "$2" --runs "$3" --keep "$log-failed" \
        >"$log" 2>&1 || rc=$?
    cat "$log"
    grep -E '^[a-z]+=' "$log" | while read -r line; do note "$line"; done
    [ $rc -eq 0 ] || note "$(grep -E '^FAILED|WARNING: Thread' "$log" | head -n 1 | cut -c1-100)"
    return $rc
}

# Where there is no QEMU to be had this is left out, and said so.
against_qemu() {
    local log=build/log/differential-$1 rc=0
    tests/install-deps qemu || true
    tests/e2e/differential --seed "$1" --seeds "$2" build/test >"$log" 2>&1 || rc=$?
    cat "$log"
    if [ $rc -eq 77 ]; then
        note "LEFT OUT: $(tail -n 1 "$log")"
        return 0
    fi
    # shellcheck disable=SC2046
    count $(tail -n 1 "$log" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p')
    note "$(grep ^stories= "$log")"
    return $rc
}

step() {
    local title=$1 start=$SECONDS rc passed failed log
    shift
    steps_number=$((steps_number + 1))
    log=$(printf '%s/%02d-%s.log' "$steps_logs" "$steps_number" "${title//[^A-Za-z0-9]/-}")
    : >"$steps_counts"
    : >"$steps_notes"
    printf '\n=== %s\n' "$title"
    (
        set -e
        "$@"
    ) >"$log" 2>&1 </dev/null
    rc=$?
    passed=$(awk '{ n += $1 } END { print n + 0 }' "$steps_counts")
    failed=$(awk '{ n += $2 } END { print n + 0 }' "$steps_counts")
    if [ $rc -eq 0 ] && [ "$failed" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "--- failed (exit code $rc); the end of $log:"
        grep -E '\[  (ERROR|FAILED) +\]|\*\*\*|error:|ERROR:|SUMMARY:|^FAIL ' "$log" | head -n 40
        echo "---"
        tail -n 40 "$log"
    fi
    sed 's/^/    /' "$steps_notes"
    steps_passed=$((steps_passed + passed))
    steps_failed=$((steps_failed + failed))
    steps_table+=("$(printf '%-34s %8d %7d %8d  %s' "$title" "$passed" "$failed" \
        $((SECONDS - start)) "$(tail -n 1 "$steps_notes")")")
    return $rc
}

steps_end() {
    printf '\n%-34s %8s %7s %8s\n' "step (itself counted)" passed failed seconds
    printf '%s\n' "${steps_table[@]}"
    printf '%-34s %8d %7d %8d\n\n' total "$steps_passed" "$steps_failed" $((SECONDS - steps_start))
    echo "$steps_passed passed, $steps_failed failed"
    [ "$steps_failed" -eq 0 ]
}
