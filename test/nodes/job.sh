#!/bin/bash
# Runs what the node was started for, hands over how it ended, and switches the node off. Its terminals are run.sh's pipes.
out=/dev/ttyS0 error=/dev/ttyS1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb
umount --lazy /mnt # the root that was pivoted away
for line in $out $error; do stty raw -echo < $line; done
status=0
setsid --wait bash /run/node/command < /dev/null > $out 2> $error || status=$?
# To set a terminal is to wait until it has been read.
for line in $out $error; do stty raw -echo < $line; done
echo "$status" > /run/node/status
echo o > /proc/sysrq-trigger
sleep infinity
