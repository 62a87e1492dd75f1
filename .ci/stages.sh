# What .ci/run is made of: steps with a hard limit, test runs with a summary, stages with a ceiling. It is sourced, and
# tests/unit/scripts/test_ci_stages.py runs it with stand-ins. The sourcing script has `set -euo pipefail`.
#
# A ceiling is the budget of a stage in minutes (docs/contributing/testing.md): a stage above it is marked in the table
# and does not fail. A limit ends the command.

failed=0
summaries=()
stages=() # those that have ended: NAME|SECONDS|CEILING
stage_name=""
total_minutes=88 # all steps together: CI gives up after 90

stage() { # NAME CEILING: the stage before it ends; CEILING 0 stands for none
    end_stage
    stage_name=$1 stage_ceiling=$2 stage_began=$SECONDS
}

end_stage() {
    if [ -n "$stage_name" ]; then stages+=("$stage_name|$((SECONDS - stage_began))|$stage_ceiling"); fi
    stage_name=""
}

# Runs a command that ends after so many minutes at the latest, or when the time for all steps is over.
step() { # MINUTES COMMAND...
    local seconds=$(($1 * 60)) left=$((total_minutes * 60 - SECONDS))
    shift
    if [ "$left" -lt 60 ]; then
        echo "no time is left for: $*" >&2
        return 1
    fi
    timeout --kill-after=30s "$((seconds < left ? seconds : left))" "$@"
}

# Runs a target, shows its output, and keeps pytest's last line and which tests failed: make adds lines of its own when
# pytest fails, a failure's text may be long, and what is said last is read first.
tests() { # NAME MINUTES COMMAND...
    local name=$1 minutes=$2 log line failures
    shift 2
    log=$(mktemp)
    step "$minutes" "$@" 2>&1 | tee "$log" || failed=1
    line=$(grep -E '^(=+ )?[0-9]+ (passed|failed|skipped|error|deselected|xfailed|xpassed)' "$log" | tail -n 1) || line=""
    failures=$(grep -E '^(FAILED|ERROR) ' "$log" | cut -c1-300 | head -n 10) || failures=""
    summaries+=("== summary of $name" ${failures:+"$failures"} "${line:-pytest gave no summary}")
    rm -f "$log"
}

# Takes away what is left of a cluster whose processes were killed. Its tool goes by the numbers of processes that it wrote
# down, and after a kill or a restart of the machine such a number belongs to a stranger: an add-on then counts as running
# and is never started, and an end of the cluster would kill the stranger. What belongs to it works in its folder.
clear_remains() { # FOLDER: where the cluster keeps what it runs
    local file number
    [ -d "$1/pids" ] || return 0
    echo "== taking away what is left of a cluster that was killed"
    for file in "$1"/pids/*; do
        number=$(cat "$file" 2>/dev/null) || continue
        if [ "$(${as_root[@]+"${as_root[@]}"} readlink "/proc/$number/cwd" 2>/dev/null)" != "$(readlink -f "$1")" ]; then rm -f "$file"; fi
    done
    step 3 ${as_root[@]+"${as_root[@]}"} "$cluster_tool" down || true # `up` says what it cannot use
}

# Starts add-ons of the cluster with `$cluster_tool addon NAME`, each with a second try, and names those that run to the
# tests: they skip what another one shows. A tool that knows no add-ons is older than they are.
start_addons() { # NAME...
    local name running=()
    if "$cluster_tool" addon >/dev/null 2>&1; then
        for name; do
            if start_addon "$name" || start_addon "$name"; then
                running+=("$name")
            else
                failed=1
                tail -n 20 "${CLUSTER_HOME:-}/run/logs/addon-$name.log" 2>/dev/null || true
                summaries+=("== the add-on $name did not start, and its tests were not run")
            fi
        done
    else
        summaries+=("== the tests of add-ons were SKIPPED: $cluster_tool makes none")
    fi
    export MAILRAIL_TEST_ADDONS="${running[*]-}"
}

start_addon() { # NAME
    step 10 ${as_root[@]+"${as_root[@]}"} "$cluster_tool" addon "$1"
}

# The table of all stages, then the summaries: the last lines are pytest's.
report() {
    local name seconds ceiling mark
    end_stage
    echo
    printf '%-24s %8s %8s\n' stage minutes ceiling
    for row in ${stages[@]+"${stages[@]}"}; do
        IFS='|' read -r name seconds ceiling <<<"$row"
        mark=""
        if [ "$ceiling" -gt 0 ] && [ "$seconds" -gt $((ceiling * 60)) ]; then mark="  OVER ITS CEILING"; fi
        if [ "$ceiling" -eq 0 ]; then ceiling=-; fi
        printf '%-24s %6d.%d %8s%s\n' "$name" $((seconds / 60)) $((seconds % 60 / 6)) "$ceiling" "$mark"
    done
    echo
    if [ "$failed" -ne 0 ]; then echo "something above failed"; fi
    printf '%s\n' ${summaries[@]+"${summaries[@]}"}
}
