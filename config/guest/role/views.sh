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

# The names are those that the two processes have one after the other while they start. SIGKILL, and the viewer first:
# on SIGTERM it calls exit() from its signal handler, and one that was just leaving hung there with its window open.
close_view() {
    read -r _ _link _viewer <"$1"
    end "$_viewer" intake setpriv xtigervncviewer
    end "$_link" intake socat
    rm -f "$1"
}
