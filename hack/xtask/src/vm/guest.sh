#!/bin/bash
# The one task of a node, once systemd is up: it takes the folder that the kernel was told of, runs the job in it with the
# second console for its output, writes down how that ended, and powers the node off.
share=/run/stevedore/share
mkdir -p "$share"
mount -t hostfs -o "hostfs=$(sed -n 's/.*stevedore\.share=\([^ ]*\).*/\1/p' /proc/cmdline)" none "$share"
# This system's own disk. It is open, so it stays until the kernel ends, however that ends.
rm -f "$share/disk"
ip link set lo up
stty raw -echo </dev/tty1
bash "$share/job" </dev/null >/dev/tty1 2>&1
echo $? >"$share/status"
# Setting it once more waits until all that was written has left.
stty raw -echo </dev/tty1
sync
systemctl poweroff --force --force
