#!/bin/sh
# Everything that an administrator does with the package, and what each step must leave; the first
# line that fails ends it, and says which. In a root of its own: a layer over this machine's.
#
#   life.sh DIR OLD.deb NEW.deb CONFIG PASSWORD    by root, in mount and process namespaces of its own
set -eu

if [ "$1" != inside ]; then
  root=$1/root
  mount -t tmpfs scratch "$1"
  mkdir "$1/upper" "$1/work" "$root"
  mount -t overlay scratch -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
  cp "$2" "$root/old.deb"; cp "$3" "$root/new.deb"; cp "$4" "$root/config"; cp "$0" "$root/life.sh"
  printf '%s\n' "$5" >"$root/password"
  mount -t tmpfs run "$root/run"
  mount -t tmpfs tmp "$root/tmp"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  exec chroot "$root" /bin/sh /life.sh inside
fi

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
conf=/etc/anechoic/anechoic.toml
unit=/usr/lib/systemd/system/anechoic.service
link=/etc/systemd/system/multi-user.target.wants/anechoic.service

fail() { echo "life.sh: $*" >&2; [ ! -s /run/agent.log ] || tail -n 20 /run/agent.log >&2; exit 1; }
is() { [ "$(stat -c '%a %U:%G' "$1")" = "$2" ] || fail "$1: $(stat -c '%a %U:%G' "$1"), not $2"; }
same() { cmp -s "$1" "$2" || fail "$1 is not what it was"; }
there() { [ -s "$1" ] || fail "$1 is not there"; }
gone() { [ ! -e "$1" ] && [ ! -L "$1" ] || fail "$1 is still there"; }
asked() { grep -qx -e "$1" /run/asked || fail "systemctl $1 was not asked, but: $(cat /run/asked)"; }
not_asked() { ! grep -q -e "$1" /run/asked || fail "systemctl was asked: $(cat /run/asked)"; }
package() { # VERB ARGUMENT: and what systemctl was asked meanwhile
  : >/run/asked
  dpkg --force-unsafe-io "$@" </dev/null
}

# Images for containers leave out manuals, and forbid to start anything. The index of manuals takes long.
rm -f /etc/dpkg/dpkg.cfg.d/* /usr/sbin/policy-rc.d /var/lib/man-db/auto-update

# A machine that runs systemd, by the look of it: what is asked is noted, and done as the unit says.
mkdir -p /run/systemd/system
cat >/bin/systemctl.new <<'SYSTEMCTL'
#!/bin/sh
echo "$*" >>/run/asked
running() { [ -s /run/agent.pid ] && readlink "/proc/$(cat /run/agent.pid)/exe" >/dev/null; } # and is no zombie
of() { sed -n "s/^$1=+\{0,1\}//p" /usr/lib/systemd/system/anechoic.service; }
as_user() { # and comes back no more
  exec setpriv --reuid "$(of User)" --regid "$(of User)" --init-groups env -i PATH=/usr/bin \
    CREDENTIALS_DIRECTORY=/run/credentials "$@"
}
start() {
  rm -rf /run/credentials; mkdir /run/credentials
  for file in /etc/anechoic/passwords/*; do
    install -m 400 -o "$(of User)" "$file" "/run/credentials/$(of LoadCredential | cut -d: -f1)_${file##*/}"
  done
  $(of ExecStartPre) || exit 1
  as_user $(of ExecStart) >>/run/agent.log 2>&1 &
  echo $! >/run/agent.pid
  until [ -S /var/lib/anechoic/control.sock ]; do running || exit 1; sleep 0.05; done
}
stop() {
  ! running || kill "$(cat /run/agent.pid)"
  while running; do sleep 0.05; done
}
for word; do
  case $word in
    -*) ;;
    start | stop) $word; exit ;;
    reload) as_user $(of ExecReload) ;;
    try-restart) [ ! -e /run/restart-fails ] || exit 1; ! running || { stop; start; }; exit 0 ;;
    *) exit 0 ;;
  esac
done
SYSTEMCTL
chmod 755 /bin/systemctl.new
rm -f /usr/bin/systemctl /bin/systemctl
mv /bin/systemctl.new /usr/bin/systemctl

package -i /old.deb
is /usr/bin/anechoic '755 root:root'
is $unit '644 root:root'
is /etc/anechoic '750 root:anechoic'
is /etc/anechoic/passwords '700 root:root'
is $conf '640 root:anechoic'
is /var/lib/anechoic '700 anechoic:anechoic'
[ "$(getent passwd anechoic | cut -d: -f6-)" = /var/lib/anechoic:/usr/sbin/nologin ] || fail "$(getent passwd anechoic)"
for page in anechoic anechoic-run anechoic-setup; do there /usr/share/man/man1/$page.1.gz; done
for file in copyright linked-crates.gz changelog.gz CHANGELOG.md README.md config/reference.toml; do there /usr/share/doc/anechoic/$file; done
[ -z "$(dpkg --verify anechoic)" ] || fail "dpkg --verify: $(dpkg --verify anechoic)"
asked '--system daemon-reload'
not_asked 'start\|enable'
gone $link

# A file that is no configuration: the unit's command says so, and with what it exits is not tried again.
start=$(sed -n 's/^ExecStart=//p' $unit)
echo 'nonsense = 1' >$conf
status=0; said=$($start 2>&1) || status=$?
[ $status = 2 ] || fail "exits with $status: $said"
case "$said" in *"$conf"*nonsense*) ;; *) fail "the unit starts: $said" ;; esac

# Set up by root, run by the service's user, to whom root's password file comes as a credential.
cat /config >$conf
(umask 077; cat /password >/etc/anechoic/passwords/all)
anechoic setup
mkdir -p "${link%/*}"; ln -s $unit $link # systemctl enable
systemctl start anechoic || fail 'it does not start'
anechoic wait --timeout 60s || fail 'not in step'
[ "$(stat -c %U "/proc/$(cat /run/agent.pid)")" = anechoic ] || fail 'runs as another user'
anechoic history contact 7 | grep -q Ada || fail 'the row did not come'
before=$(cat /run/agent.pid)

# What is no configuration is refused aloud; what it runs by is taken once more.
echo 'nonsense = 1' >>$conf
! said=$(systemctl reload anechoic 2>&1) || fail 'nonsense is taken'
case "$said" in *nonsense*) ;; *) fail "why it is not taken: $said" ;; esac
cat /config >$conf
systemctl reload anechoic >/dev/null || fail 'what it runs by is not taken'
[ "$(cat /run/agent.pid)" = "$before" ] || fail 'it was started anew'

# What an administrator has changed stays; what ran runs again, as the new version.
chmod 644 $conf; chgrp root $conf /etc/anechoic; chmod 755 /etc/anechoic; cp $conf /conf.before
package -i /new.deb
same $conf /conf.before
is $conf '644 root:root'
is /etc/anechoic '755 root:root'
asked '--system daemon-reload'
asked 'try-restart anechoic.service'
there $link
! readlink "/proc/$before/exe" || fail 'the old one still runs'
anechoic wait --timeout 60s || fail 'not in step after the upgrade'
anechoic history contact 7 | grep -q Ada || fail 'the journal is another one'

# An agent that does not start again is no reason to leave the package half installed.
touch /run/restart-fails
said=$(package -i /new.deb 2>&1) || fail "$said"
case "$said" in *'did not start again'*'journalctl -u anechoic'*) ;; *) fail "nothing is said: $said" ;; esac
rm /run/restart-fails $link # systemctl disable
package -i /new.deb
gone $link

# Removed: it runs no longer, and what it knows stays; installed again, it goes on from there.
ln -s $unit $link
said=$(package --remove anechoic 2>&1)
case "$said" in *'keeps its log for the slot'*'anechoic teardown'*) ;; *) fail "removed, and nothing is said: $said" ;; esac
asked 'stop anechoic.service'
asked '--system daemon-reload'
! readlink "/proc/$(cat /run/agent.pid)/exe" || fail 'it still runs'
gone /usr/bin/anechoic; gone $unit
same $conf /conf.before; there /etc/anechoic/passwords/all; there /var/lib/anechoic
package -i /new.deb
same $conf /conf.before
systemctl start anechoic
anechoic wait --timeout 60s || fail 'not in step after it was installed again'
systemctl stop anechoic
anechoic teardown

# After a teardown nothing is left to be told; without one it is, before nobody knows of it any more.
said=$(package --remove anechoic 2>&1)
case "$said" in *slot*) fail "$said" ;; esac
mkdir /var/lib/anechoic/journal
said=$(package --purge anechoic 2>&1)
case "$said" in *'pg_drop_replication_slot'*) ;; *) fail "purged, and nothing is said: $said" ;; esac
gone /etc/anechoic; gone /var/lib/anechoic; gone $link
getent passwd anechoic >/dev/null || fail 'the user is gone'

# Where nothing runs systemd, nobody is asked.
rm -r /run/systemd
package -i /new.deb
package --purge anechoic
[ ! -s /run/asked ] || fail "systemctl was asked: $(cat /run/asked)"
echo WHOLE
