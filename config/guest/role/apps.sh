# shellcheck shell=sh
# One application: an X server without TCP, a window manager that lets the application fill it, the application.
# State: /run/us/exec/APP/{display,geometry,title,command,*.pid,*.log}; what the user `user` writes is in /run/us/user.

readonly apps=$state/exec
tab=$(printf '\t')
readonly tab

app_names() {
    for _dir in "$apps"/*/; do
        [ ! -d "$_dir" ] || { _dir=${_dir%/} && echo "${_dir##*/}"; }
    done
}

is_app_up() { [ -d "$apps/$1" ] && [ -z "$(app_fault "$1")" ]; }

# app_fault APP: what does not run, in words; empty when all does.
app_fault() {
    _app=$apps/$1
    alive "$(recall "$_app/Xvnc.pid")" Xtigervnc || { echo "X server has ended" && return; }
    alive "$(recall "$_app/openbox.pid")" openbox || { echo "window manager has ended" && return; }
    alive "$(recall "$_app/command.pid")" || { echo "application has ended: $(tail -n 1 "$_app/command.log")" && return; }
}

# A place that the terminal's user gave the window outlives a restart of the application.
describe_app() {
    mkdir -p "$apps/$1"
    [ -e "$apps/$1/geometry" ] || record "$apps/$1/geometry" "$2"
    record "$apps/$1/title" "$3"
    record "$apps/$1/command" "$4"
    [ -e "$apps/$1/display" ] || record "$apps/$1/display" "$(free_display)"
}

free_display() {
    _n=1
    while grep -qx "$_n" "$apps"/*/display 2>/dev/null; do _n=$((_n + 1)); done
    echo "$_n"
}

stop_app() {
    drop_link "$1"
    end "$(recall "$apps/$1/command.pid")"
    end "$(recall "$apps/$1/openbox.pid")" openbox setpriv exec
    end "$(recall "$apps/$1/Xvnc.pid")" Xtigervnc setpriv exec
    rm -f "$apps/$1"/*.pid "$state/user/$1.rfb" "$state/user/$1.ready"
}

forget_app() {
    stop_app "$1"
    rm -rf "${apps:?}/$1"
}

drop_link() {
    end "$(recall "$apps/$1/link.pid")" exec setsid socat link
    rm -f "$apps/$1/link.pid" "$apps/$1/answer" "$apps/$1/link.log"
}

# Returns when the application's window is mapped.
start_app() {
    app=$1
    dir=$apps/$1
    ready=$state/user/$1.ready
    stop_app "$1"
    display=$(recall "$dir/display")
    geometry=$(recall "$dir/geometry")
    rm -f "/tmp/.X11-unix/X$display" "/tmp/.X$display-lock"
    mkfifo -m 666 "$ready"
    exec 7<>"$ready"

    # NeverShared: a new viewer always replaces the one before, so that no window is ever shown twice.
    (as_user Xtigervnc ":$display" -displayfd 7 -geometry "${geometry%%+*}" -depth 24 -rfbport -1 -localhost=1 \
        -rfbunixpath "$state/user/$app.rfb" -SecurityTypes None -NeverShared -desktop "$(recall "$dir/title")" \
        -ac -nolisten tcp -s 0 -extension GLX -FrameRate 30) >"$dir/Xvnc.log" 2>&1 </dev/null &
    record "$dir/Xvnc.pid" $!
    heard $! "$app: X server" "$dir/Xvnc.log"

    export DISPLAY=":$display"
    # A window that is mapped while openbox starts stays unmapped for ever: the application starts after it is up.
    (as_user openbox --sm-disable --config-file "$lib/kiosk.xml" --startup "sh -c 'echo up >$ready'") \
        >"$dir/openbox.log" 2>&1 </dev/null 7>&- &
    record "$dir/openbox.pid" $!
    heard $! "$app: openbox" "$dir/openbox.log"

    (cd "$HOME" && as_user sh -c "exec $(recall "$dir/command")") >"$dir/command.log" 2>&1 </dev/null 7>&- &
    command_pid=$!
    record "$dir/command.pid" "$command_pid"
    await_window
    rm -f "$ready"
}

# Asks the X server to tell of each change in openbox's list of windows, until one is there.
await_window() {
    xprop -root -spy _NET_CLIENT_LIST >&7 2>/dev/null </dev/null &
    spy=$!
    _end=$(($(seconds) + start_wait_s))
    while :; do
        if read -r -t 0.5 list <&7; then
            case $list in *0x*) break ;; esac
        elif ! alive "$command_pid"; then
            kill "$spy" 2>/dev/null
            die "$app ended before it had a window: $(tail -n 1 "$dir/command.log")"
        elif [ "$(seconds)" -ge "$_end" ]; then
            kill "$spy" 2>/dev/null
            die "$app has no window after $start_wait_s s: $(tail -n 1 "$dir/command.log")"
        fi
    done
    kill "$spy" 2>/dev/null
}
