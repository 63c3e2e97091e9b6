# What the scripts in this folder share; they source it. Functions only, and the project's folder as $root.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# fail CODE MESSAGE: one line on standard error.
fail() {
    printf 'error: %s\n' "$2" >&2
    exit "$1"
}

# help_or_version "$@": answers --help with the comment at the head of the calling script, and --version.
help_or_version() {
    case ${1:-} in
        -h | --help) sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "${BASH_SOURCE[1]}" ;;
        --version) sed -n 's/^version = "\(.*\)"$/cog-flux-adetailer \1/p' "$root/pyproject.toml" ;;
        *) return 0 ;;
    esac
    exit 0
}

# install_packages [LIST]: brings .venv up to date. An older one that works will do: scripts/bootstrap has said what it lacks.
install_packages() {
    "$root/scripts/bootstrap" "$@" || (($? == 3)) || exit 1
}

# run_command NAME ARGUMENTS: modules/cli/NAME.py with the pinned packages.
run_command() {
    install_packages
    # -P and PYTHONPATH: modules come from the project alone, whatever lies in the current folder.
    PYTHONPATH=$root exec "$root/.venv/bin/python" -P -m "modules.cli.$1" "${@:2}"
}
