# Runs a command as a container of docker-compose.yml would: as process 1 of its own, uid 10001, without capabilities, on a root that
# nobody can write. $MOUNTS: lines of "SOURCE TARGET rw|ro", targets below /run and /var/lib, which are empty but for them.
set -eu
lines=$MOUNTS
mount -t tmpfs tmpfs /run
mkdir /run/tmp /run/from
mount -t tmpfs tmpfs /run/tmp
number=0
echo "$lines" | while read -r source target mode; do
    # From here first: what is laid over /var/lib may hide where it comes from.
    number=$((number + 1))
    if [ -d "$source" ]; then mkdir "/run/from/$number"; else touch "/run/from/$number"; fi
    mount --bind "$source" "/run/from/$number"
done
mount -t tmpfs tmpfs /var/lib
number=0
echo "$lines" | while read -r source target mode; do
    number=$((number + 1))
    mkdir -p "${target%/*}"
    if [ -d "/run/from/$number" ]; then mkdir -p "$target"; else touch "$target"; fi
    mount --bind "/run/from/$number" "$target"
    if [ "$mode" = ro ]; then mount -o remount,bind,ro "$target"; fi
    umount "/run/from/$number"
done
findmnt -rno TARGET,VFS-OPTIONS | while read -r target options; do
    case $target in
        /run/?* | /var/lib/?* | /proc | /proc/* | /dev | /dev/* | /sys | /sys/*) ;;
        *) mount -o "remount,bind,ro,${options#*,}" "$target" ;;
    esac
done
cd /
exec setpriv --inh-caps=-all --ambient-caps=-all --bounding-set=-all --no-new-privs "$@"
