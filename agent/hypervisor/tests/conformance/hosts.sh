#!/bin/sh
# Raises hosts with a libvirtd of their own, out of namespaces, and runs one command inside the first.
#
#   hosts.sh one FOLDER HOOK COMMAND...    PID 1 of one host
#   hosts.sh two FOLDER HOOK COMMAND...    PID 1 over two hosts with a wire between them and TLS; the command runs in
#                                          the first
#
# Everything lives in PID namespaces of which this script is the first process: when it ends, all of it does.
# FOLDER/h<N> is a host's disk; FOLDER/h<N>/permits is its /run/understudy/permits, so that a command in one host can
# write the other's permits.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
# A build tool's own: nothing that libvirtd starts shall find libraries by it.
unset LD_LIBRARY_PATH

address() { echo "10.78.0.$1"; }

certificates() { # FOLDER/pki: one CA, one certificate per host
    mkdir -p "$1/pki"
    cd "$1/pki"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=test CA" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout ca.key -out ca.pem 2>/dev/null
    for n in 1 2; do
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/O=test/CN=host$n" \
            -keyout h$n.key -out h$n.csr 2>/dev/null
        printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=DNS:host%s,IP:%s\n' \
            $n "$(address $n)" >h$n.ext
        openssl x509 -req -in h$n.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out h$n.pem \
            -extfile h$n.ext 2>/dev/null
    done
    cd /
}

disk() { # FOLDER NUMBER HOOK TLS: what survives on a host
    d=$1/h$2
    mkdir -p "$d/etc/libvirt/hooks" "$d/etc/libvirt/qemu" "$d/lib" "$d/log/qemu" "$d/cache" "$d/permits" \
        "$d/pki/CA" "$d/pki/libvirt/private" "$d/pki/qemu"
    chmod 700 "$d/permits"
    cp "$3" "$d/etc/libvirt/hooks/qemu"
    chmod 755 "$d/etc/libvirt/hooks/qemu"
    printf '127.0.0.1 localhost\n%s host1\n%s host2\n' "$(address 1)" "$(address 2)" >"$d/hosts"
    cat >"$d/etc/libvirt/libvirtd.conf" <<C
listen_tls = $4
listen_tcp = 0
listen_addr = "$(address "$2")"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
host_uuid = "0000000$2-78aa-4000-8000-00000000000$2"
log_level = 3
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
keepalive_interval = 1
keepalive_count = 3
C
    cat >"$d/etc/libvirt/qemu.conf" <<C
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
keepalive_interval = 1
keepalive_count = 3
migration_address = "0.0.0.0"
migration_host = "$(address "$2")"
default_tls_x509_cert_dir = "/etc/pki/qemu"
migrate_tls_x509_verify = 1
C
    [ "$4" = 1 ] || return 0
    k=$1/pki
    cp "$k/ca.pem" "$d/pki/CA/cacert.pem"
    cp "$k/ca.pem" "$d/pki/qemu/ca-cert.pem"
    for role in server client; do
        cp "$k/h$2.pem" "$d/pki/libvirt/${role}cert.pem"
        cp "$k/h$2.key" "$d/pki/libvirt/private/${role}key.pem"
        cp "$k/h$2.pem" "$d/pki/qemu/$role-cert.pem"
        cp "$k/h$2.key" "$d/pki/qemu/$role-key.pem"
    done
}

power_on() { # FOLDER NUMBER TLS: inside the host's namespaces
    d=$1/h$2
    mount --make-rprivate /
    mount -t proc proc /proc
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/lock /run/libvirt /run/understudy/permits /etc/pki /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
    mount --bind "$d/permits" /run/understudy/permits
    mount --bind "$d/etc/libvirt" /etc/libvirt
    mount --bind "$d/lib" /var/lib/libvirt
    mount --bind "$d/log" /var/log/libvirt
    mount --bind "$d/cache" /var/cache/libvirt
    mount --bind "$d/pki" /etc/pki
    mount --bind "$d/hosts" /etc/hosts
    # libvirt must not find the machine's own control groups.
    mount -t tmpfs tmpfs /sys/fs/cgroup 2>/dev/null || true
    hostname "host$2"
    ip link set lo up
    ip link add vmbr0 type bridge
    ip link set vmbr0 up
    listen=
    [ "$3" = 0 ] || listen=--listen
    libvirtd --daemon $listen --pid-file /run/libvirtd.pid
    wait_for "[ -S /run/libvirt/libvirt-sock ]"
}

wait_for() { # CONDITION
    tries=0
    until eval "$1"; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { echo "hosts.sh: never came true: $1" >&2; exit 70; }
        sleep 0.05
    done
}

case $1 in
one)
    folder=$2
    disk "$folder" 1 "$3" 0
    power_on "$folder" 1 0
    shift 3
    "$@"
    ;;
two)
    self=$0 folder=$2
    mount --make-rprivate /
    mount -t proc proc /proc
    certificates "$folder"
    for n in 1 2; do disk "$folder" $n "$3" 1; done
    shift 3
    start() { # NUMBER COMMAND...: a host of its own
        n=$1
        shift
        setpriv --pdeathsig KILL unshare --net --mount --uts --ipc --pid --fork --kill-child --propagation private \
            sh "$self" __host "$folder" "$n" "$@" &
    }
    start 2 sleep infinity
    start 1 "$@"
    first=$!
    wait_for "[ -s $folder/h1/wait ] && [ -s $folder/h2/wait ]"
    # The hosts' first processes are sought by the word that only they carry, since they know their own number 1 alone.
    pid_of() { pgrep -f "^sh $self __host $folder $1 "; }
    one=$(pid_of 1) two=$(pid_of 2)
    nsenter --net="/proc/$one/ns/net" ip link add eth0 type veth peer name eth0 netns "$two"
    for n in 1 2; do
        [ $n = 1 ] && p=$one || p=$two
        nsenter --net="/proc/$p/ns/net" ip addr add "$(address $n)/24" dev eth0
        nsenter --net="/proc/$p/ns/net" ip link set eth0 up
        echo up >"$folder/h$n/wired"
    done
    wait $first
    ;;
__host)
    folder=$2 n=$3
    echo here >"$folder/h$n/wait"
    wait_for "[ -s $folder/h$n/wired ]"
    power_on "$folder" "$n" 1
    echo ready >"$folder/h$n/ready"
    wait_for "[ -s $folder/h1/ready ] && [ -s $folder/h2/ready ]"
    shift 3
    "$@"
    ;;
esac
