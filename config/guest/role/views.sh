# shellcheck shell=sh
# Windows of execution nodes on a display: one file nodes/NODE/APP.view each, `EPOCH LINK-PID VIEWER-PID`.
# Callers hold the node's lock.

# Closes the windows of a node whose epoch is older than the one given.
close_views() {
    for _view in "$1"/*.view; do
        [ -e "$_view" ] || continue
        read -r _epoch _ <"$_view"
        [ "$_epoch" -ge "$2" ] || close_view "$_view"
    done
}

# The names are those that the two processes have one after the other while they start.
close_view() {
    read -r _ _link _viewer <"$1"
    alive "$_link" intake socat && kill "$_link"
    alive "$_viewer" intake setpriv xtigervncviewer && kill "$_viewer"
    rm -f "$1"
}
