#!/bin/sh
# The first program in the machine of scripts/vmrun, from its initrd: busybox and a few modules.
# It lays a file system in memory over that of the machine outside, and goes on there.
set -e
mkdir -p /proc /sys /dev /host /own /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/modules/$module" || echo "not loaded: $module"
done </modules/order
for port in /dev/vport*; do
    ln -s "$port" "/dev/vmrun${port##*p}"
done

mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host
mount -t tmpfs -o size=80% own /own
mkdir /own/upper /own/work
mount -t overlay -o lowerdir=/host,upperdir=/own/upper,workdir=/own/work overlay /root
for folder in proc sys dev; do
    mount --move "/$folder" "/root/$folder"
done
cd /root
mkdir -p dev/pts dev/shm run sys/fs/cgroup
mount -t devpts -o ptmxmode=666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs tmpfs run
mkdir run/netns run/lock run/sshd
mount -t cgroup2 cgroup2 sys/fs/cgroup
ip link set lo up
hostname vm
run=$(sed "s/.*vmrun=//; s/ .*//" proc/cmdline)
exec switch_root /root /bin/sh "$run"
