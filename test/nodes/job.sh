#!/bin/bash
# Runs the node's command, passes on its exit code, and switches the node off. The terminals are run.sh's pipes.
out=/dev/ttyS0 error=/dev/ttyS1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb
umount --lazy /mnt # the root that was pivoted away
for line in $out $error; do stty raw -echo < $line; done
status=0
setsid --wait bash /run/node/command < /dev/null > $out 2> $error || status=$?
# Setting a terminal waits until its output has been read.
for line in $out $error; do stty raw -echo < $line; done
echo "$status" > /run/node/status
echo o > /proc/sysrq-trigger
sleep infinity
