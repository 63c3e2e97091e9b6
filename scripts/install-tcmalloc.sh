#!/usr/bin/env bash
# Installs TCMalloc on Debian and Ubuntu and writes the environment file that scripts/start-backend-optimized.sh reads.
#   scripts/install-tcmalloc.sh [--file FILE]     install; nothing happens when it is done already
#   scripts/install-tcmalloc.sh --check           exit code 0 when a process that is started with the file runs on TCMalloc
#   scripts/install-tcmalloc.sh --undo            remove the file, and the package if this script installed it
#   scripts/install-tcmalloc.sh --package         only say which package this system has it in
# NO_TCMALLOC=1 makes it do nothing. Whether it helps is measured in docs/performance.md.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_or_version "$@"
PATH=$PATH:/usr/sbin:/sbin # ldconfig is there, which Debian hides from users

file=$root/allocator.env
action=install

while (($#)); do
    case $1 in
        --file) file=${2:?error: --file needs a path} && shift 2 ;;
        --check | --undo | --package) action=${1#--} && shift ;;
        *) fail 2 "unknown option $1; see scripts/install-tcmalloc.sh --help" ;;
    esac
done

package() { # its name differs since the change to 64-bit time
    local id version
    id=$(. "${OS_RELEASE:-/etc/os-release}" && printf '%s' "${ID:-}")
    version=$(. "${OS_RELEASE:-/etc/os-release}" && printf '%s' "${VERSION_ID:-0}")
    case $id in
        debian) ((${version%%.*} >= 13)) && printf 'libtcmalloc-minimal4t64\n' || printf 'libtcmalloc-minimal4\n' ;;
        ubuntu) ((${version%%.*} >= 24)) && printf 'libtcmalloc-minimal4t64\n' || printf 'libtcmalloc-minimal4\n' ;;
        *) fail 1 "only Debian and Ubuntu are known here, not '${id:-this system}'; install gperftools by hand, this script then finds it" ;;
    esac
}

library() { # the linker knows where it is, whatever the architecture and the package
    ldconfig -p | awk '/libtcmalloc(_minimal)?\.so\.4 / { print $NF; exit }'
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

preloaded() { # whether a process that is given the file really runs on it
    local path
    path=$(sed -n 's/^TCMALLOC_LIBRARY=//p' "$file" 2>/dev/null)
    [[ -n $path && -e $path ]] && LD_PRELOAD=$path grep -q libtcmalloc /proc/self/maps
}

case $action in
    package) package ;;
    check)
        [[ -e $file ]] || fail 1 "TCMalloc is not set up: there is no ${file##*/}"
        preloaded || fail 1 "${file##*/} names a library that does not load; run scripts/install-tcmalloc.sh again"
        sed -n 's/^TCMALLOC_LIBRARY=/TCMalloc: /p' "$file"
        ;;
    undo)
        installed=$(sed -n 's/^# installed package: //p' "$file" 2>/dev/null || true)
        rm -f "$file"
        if [[ -n $installed ]]; then as_root apt-get remove -y -qq "$installed" >&2; fi
        printf 'TCMalloc is not used any more%s\n' "${installed:+, package $installed removed}"
        ;;
    install)
        if [[ ${NO_TCMALLOC:-} == 1 ]]; then
            printf 'NO_TCMALLOC is set: nothing done\n'
            exit 0
        fi
        installed=$(sed -n 's/^# installed package: //p' "$file" 2>/dev/null || true)
        if [[ -z $(library) ]]; then
            name=$(package)
            # lists as they are first: in an image they have just been downloaded
            as_root apt-get install -y -qq --no-install-recommends "$name" >&2 ||
                { as_root apt-get update -qq >&2 && as_root apt-get install -y -qq --no-install-recommends "$name" >&2; } ||
                fail 1 "apt could not install $name: see the lines above"
            installed=$name
        fi
        path=$(library)
        [[ -n $path ]] || fail 1 "the linker does not find libtcmalloc after its installation; run ldconfig"
        {
            printf '# Written by scripts/install-tcmalloc.sh, which also removes it: --undo\n'
            if [[ -n $installed ]]; then printf '# installed package: %s\n' "$installed"; fi
            printf 'TCMALLOC_LIBRARY=%s\n' "$path"
        } >"$file.part"
        mv "$file.part" "$file"
        preloaded || fail 1 "$path does not load"
        printf 'TCMalloc: %s\n' "$path"
        ;;
esac
