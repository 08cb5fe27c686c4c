#!/usr/bin/env bash
# A private Slurm of two nodes on this machine, for tests: its files and its processes are under one
# folder, and it is stopped by process id.
#
#   slurm.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf
#   slurm.sh stop FOLDER
#
# Needs Debian's slurm-wlm and munge; neither systemd nor another user than this one.
set -euo pipefail
PATH="$PATH:/usr/sbin"
folder=$(realpath -m "$2")

free_ports() {
    python3 - "$1" <<'EOF'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for each in sockets:
    each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))
EOF
}

configure() {
    read -r control first second < <(free_ports 3)
    local cpus
    cpus=$(nproc)
    cat >"$folder/slurm.conf" <<EOF
ClusterName=gradlab
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$control
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for the credential to expire.
AuthInfo=socket=$folder/munge.socket,cred_expire=3
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.own
SlurmdPidFile=$folder/slurmd.%n.own
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
KillWait=2
MinJobAge=300
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$first CPUs=$cpus RealMemory=2000
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$second CPUs=$cpus RealMemory=2000
PartitionName=small Nodes=n1,n2 Default=YES MaxTime=60 State=UP
EOF
}

launch() {
    local name=$1
    shift
    # The child must not hold the caller's pipes open, nor its terminal.
    "$@" </dev/null >>"$folder/$name.out" 2>&1 &
    echo $! >"$folder/$name.pid"
}

start() {
    mkdir -p "$folder"/{state,spool.n1,spool.n2}
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    configure
    launch munged munged --foreground --force --key-file "$folder/munge.key" \
        --socket "$folder/munge.socket" --pid-file "$folder/munged.own" \
        --log-file "$folder/munged.log" --seed-file "$folder/munged.seed"
    for _ in $(seq 50); do [ -S "$folder/munge.socket" ] && break || sleep 0.1; done
    export SLURM_CONF=$folder/slurm.conf
    launch slurmctld slurmctld -D -f "$SLURM_CONF"
    launch slurmd.n1 slurmd -D -N n1 -f "$SLURM_CONF"
    launch slurmd.n2 slurmd -D -N n2 -f "$SLURM_CONF"
    for _ in $(seq 150); do
        [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ] && return
        sleep 0.2
    done
    echo "the nodes did not come up; see $folder/*.log" >&2
    stop
    return 1
}

stop() {
    local name pid
    for name in slurmd.n1 slurmd.n2 slurmctld munged; do
        [ -f "$folder/$name.pid" ] || continue
        pid=$(<"$folder/$name.pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null && sleep 0.1 || break; done
        kill -9 "$pid" 2>/dev/null || true
        rm -f "$folder/$name.pid"
    done
}

"$1"
