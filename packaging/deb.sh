#!/usr/bin/env bash
# Builds the Debian package into target/debian (or ANECHOIC_OUT), from a release build or ANECHOIC_BINARY.
#
# DEBFULLNAME and DEBEMAIL say who answers for it, as for Debian's own tools; else the author of the last
# commit does. ANECHOIC_VERSION stands in for the version of Cargo.toml, ANECHOIC_COMPRESSION (none,
# gzip, ...) for dpkg-deb's own choice.
set -euo pipefail
umask 022
cd "$(dirname "$(readlink -f "$0")")/.."

version=${ANECHOIC_VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
if [ -n "${DEBFULLNAME:-}" ] && [ -n "${DEBEMAIL:-}" ]; then
  maintainer="$DEBFULLNAME <$DEBEMAIL>"
else
  maintainer=$(git log -1 --format='%an <%ae>' 2>/dev/null) || {
    echo "deb.sh: nobody is named who answers for the package: set DEBFULLNAME and DEBEMAIL" >&2
    exit 1
  }
fi
out=${ANECHOIC_OUT:-target/debian}
if [ -z "${ANECHOIC_BINARY:-}" ]; then
  cargo build --release
  ANECHOIC_BINARY=${CARGO_TARGET_DIR:-target}/release/anechoic
fi
arch=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
put() { install -D -m "$1" "$2" "$root$3"; }

put 755 "$ANECHOIC_BINARY" /usr/bin/anechoic
strip --remove-section=.comment "$root/usr/bin/anechoic"
"$ANECHOIC_BINARY" generate "$work/generated"
for page in "$work"/generated/*.1; do
  gzip -9n "$page"
  put 644 "$page.gz" "/usr/share/man/man1/${page##*/}.gz"
done
put 644 "$work/generated/anechoic.bash" /usr/share/bash-completion/completions/anechoic
put 644 "$work/generated/_anechoic" /usr/share/zsh/vendor-completions/_anechoic
put 644 "$work/generated/anechoic.fish" /usr/share/fish/vendor_completions.d/anechoic.fish

sed -e 's|/usr/local/bin/anechoic|/usr/bin/anechoic|; s|/etc/systemd/system/|/usr/lib/systemd/system/|' \
  -e '/^Description=/a Documentation=man:anechoic(1)' config/anechoic.service >"$work/anechoic.service"
put 644 "$work/anechoic.service" /usr/lib/systemd/system/anechoic.service
put 640 config/anechoic.toml /etc/anechoic/anechoic.toml
install -d -m 700 "$root/etc/anechoic/passwords"

# As they lie here, so that they find each other.
doc=/usr/share/doc/anechoic
for file in *.md config/reference.toml config/grafana/* config/prometheus/*; do put 644 "$file" "$doc/$file"; done
put 644 packaging/copyright "$doc/copyright"
packaging/licences.sh | gzip -9n >"$work/linked-crates.gz"
put 644 "$work/linked-crates.gz" "$doc/linked-crates.gz"
put 644 packaging/lintian-overrides /usr/share/lintian/overrides/anechoic
# In the form that apt shows before an upgrade.
cat >"$work/changelog" <<CHANGELOG
anechoic ($version) unstable; urgency=medium

  * What an operator notices: $doc/CHANGELOG.md

 -- $maintainer  $(git log -1 --format=%aD 2>/dev/null || date -R)
CHANGELOG
gzip -9n "$work/changelog"
put 644 "$work/changelog.gz" "$doc/changelog.gz"

# The oldest libc that has every symbol the binary asks for.
libc=$(readelf --version-info "$root/usr/bin/anechoic" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -uV | tail -n 1)
mkdir "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<CONTROL
Package: anechoic
Version: $version
Architecture: $arch
Maintainer: $maintainer
Section: database
Priority: optional
Installed-Size: $(du -sk "$root" | cut -f1)
Depends: libc6 (>= $libc), libgcc-s1, passwd, init-system-helpers (>= 1.54~)
Recommends: ca-certificates
Description: keeps business records in step across live databases
 One service beside PostgreSQL, MySQL and MariaDB carries each change of a
 record to the other systems, in every direction, without echoes.
CONTROL
echo /etc/anechoic/anechoic.toml >"$root/DEBIAN/conffiles"
for script in packaging/debian/*; do install -m 755 "$script" "$root/DEBIAN/"; done
# What `dpkg --verify` compares with; a conffile is the administrator's.
(cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"

mkdir -p "$out"
dpkg-deb ${ANECHOIC_COMPRESSION:+"-Z$ANECHOIC_COMPRESSION"} --root-owner-group --build "$root" "$out/anechoic_${version}_$arch.deb"
