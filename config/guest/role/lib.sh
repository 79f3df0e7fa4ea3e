# shellcheck shell=sh
# What the role scripts share. They run in the role disk's own root (/env of the instance) under busybox sh.
#
# Processes are known by pid and name, since a pid alone may have been given to another process. State lives under
# /run/us, which is RAM of the guest: it is lost with the guest and comes back with a restored checkpoint.
export PATH=/usr/lib/understudy/applications:/usr/bin:/usr/sbin LANG=C.UTF-8 HOME=/home/user XDG_RUNTIME_DIR=/run/us/user
# No accessibility bus and no settings daemon in the guest: GTK would wait for them.
export NO_AT_BRIDGE=1 GTK_A11Y=none GSETTINGS_BACKEND=memory GDK_BACKEND=x11

readonly lib=/usr/lib/understudy
readonly state=/run/us
readonly start_wait_s=90

die() {
    echo "us: $*" >&2
    exit 1
}

refuse() {
    echo "us: refused: $*" >&2
    exit 3
}

wrong_use() {
    echo "us: $*" >&2
    exit 2
}

# Waits a fraction of a second without a process for it: nothing is ever written to that pipe.
nap() { read -r -t "$1" _ <>"$state/never" || :; }

seconds() {
    IFS=' .' read -r up _ </proc/uptime
    echo "$up"
}

is_number() { case $1 in '' | *[!0-9]* | ????????????????????*) return 1 ;; esac }

# A name is part of paths and of lines with blanks between fields.
is_name() { case $1 in '' | [.-]* | *[!A-Za-z0-9._-]*) return 1 ;; esac; [ ${#1} -le 64 ]; }

is_token() { case $1 in '' | *[!A-Za-z0-9._~+/=-]*) return 1 ;; esac; [ ${#1} -le 256 ]; }

is_size() {
    case $1 in *[!0-9x]* | *x*x* | x* | *x | '') return 1 ;; *x*) ;; *) return 1 ;; esac
    [ "${1%x*}" -ge 16 ] && [ "${1%x*}" -le 16384 ] && [ "${1#*x}" -ge 16 ] && [ "${1#*x}" -le 16384 ]
}

# WxH+X+Y
is_geometry() {
    case $1 in *+*+*+* | *[!0-9x+]*) return 1 ;; *+*+*) ;; *) return 1 ;; esac
    _at=${1#*+}
    is_size "${1%%+*}" && is_number "${_at%+*}" && is_number "${_at#*+}"
}

# alive PID [NAME...]: the process runs, and under one of these names (the kernel's, at most 15 characters) if any.
alive() {
    [ -n "$1" ] || return 1
    # A process that has ended but was not waited for keeps its name.
    read -r _stat 2>/dev/null <"/proc/$1/stat" || return 1
    case $_stat in *") Z "* | *") X "*) return 1 ;; esac
    [ $# -gt 1 ] || return 0
    read -r _name 2>/dev/null <"/proc/$1/comm" || return 1
    shift
    for _want in "$@"; do [ "$_name" != "$_want" ] || return 0; done
    return 1
}

# end PID NAME...: kills that process and returns when it is gone.
end() {
    while alive "$@"; do
        kill -9 "$1" 2>/dev/null
        nap 0.01
    done
}

# heard PID WHAT LOG: waits for one line on file descriptor 7, which the process or what it starts writes when ready.
heard() {
    _end=$(($(seconds) + start_wait_s))
    until read -r -t 0.5 _ <&7; do
        alive "$1" || die "$2 ended at once: $(tail -n 1 "$3" 2>/dev/null)"
        [ "$(seconds)" -lt "$_end" ] || die "$2 is not ready after $start_wait_s s: $(tail -n 1 "$3" 2>/dev/null)"
    done
}

# recall FILE: the one line of a state file, empty if there is none.
recall() {
    _line=
    [ ! -e "$1" ] || read -r _line <"$1" || true
    echo "$_line"
}

# record FILE LINE: a reader sees the old line or the new one.
record() {
    printf '%s\n' "$2" >"$1.new"
    mv "$1.new" "$1"
}

# listens PORT: some socket accepts TCP connections there.
listens() {
    _hex=$(printf ':%04X' "$1")
    for _table in /proc/net/tcp /proc/net/tcp6; do
        while read -r _ _local _ _state _; do
            [ "$_state" = 0A ] || continue
            case $_local in *"$_hex") return 0 ;; esac
        done <"$_table"
    done
    return 1
}

# Applications and everything that draws run without root's rights.
# The path in full: busybox sh would take its own applet, which has no such options.
as_user() { exec /usr/bin/setpriv --reuid 1000 --regid 1000 --clear-groups -- "$@"; }
