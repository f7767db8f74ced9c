#!/usr/bin/env bash
# Prints what the licences of the linked crates ask to go with the binary: each crate and its licence, then
# each text once, under the names of the crates that bring it.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
shopt -s nullglob nocaseglob

tree=$(cargo tree --locked --edges normal --prefix none --format '{p}|{l}|{r}' |
  sed '/^anechoic v/d; s/ (\*)$//; s/ (proc-macro)//' | LC_ALL=C sort -u)
declare -A crates=() files=()
none=()
echo 'anechoic is linked with these crates:'
echo
while IFS='|' read -r crate licence home; do
  read -r name version _ <<<"$crate"
  echo "  $name ${version#v}: $licence${home:+, $home}"
  source=("${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-${version#v}"/)
  [ ${#source[@]} -gt 0 ] || { echo "licences.sh: $name ${version#v} is not unpacked: cargo fetch --locked" >&2; exit 1; }
  found=("$source"{LICEN[CS]E,UNLICENSE,COPYING,COPYRIGHT,NOTICE}*)
  texts=()
  for file in "${found[@]}"; do [ ! -f "$file" ] || texts+=("$file"); done
  [ ${#texts[@]} -gt 0 ] || { none+=("$name"); continue; }
  while read -r sum file; do
    crates[$sum]+=" $name"
    files[$sum]=$file
  done < <(md5sum "${texts[@]}")
done <<<"$tree"

if [ ${#none[@]} -gt 0 ]; then
  printf '\nWithout a text of their own, under the licence named above: %s\n' "${none[*]}"
fi
for sum in $(printf '%s\n' "${!crates[@]}" | sort); do
  printf '\n\n'
  echo "==${crates[$sum]}" | fold -s -w 100
  echo
  cat "${files[$sum]}"
done
