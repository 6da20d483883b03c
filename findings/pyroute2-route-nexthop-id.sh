#!/usr/bin/env bash
# pyroute2 0.9.7: a dumped route does not name the nexthop object that it uses.
#
# A route that was made with `nhid 5` carries the attribute RTA_NH_ID (30, linux/rtnetlink.h) in the kernel's answer. pyroute2
# knows the attributes of a route up to a lower number: it gives this one as UNKNOWN, with its type and length and without its
# value, and get("RTA_NH_ID") is None. The gateway and the link of the nexthop object are there, so the route looks like one
# that was made with `via`. `ip route`, from the same kernel, shows the number.
#
# Seen with pyroute2 0.9.7, Python 3.11, iproute2 6.1.0 (Debian 12), Linux 6.18:
#
#   ip route: 198.51.100.0/24 nhid 5 via 192.0.2.254 dev link0
#   RTA_NH_ID: None
#   RTA_GATEWAY: 192.0.2.254
#   UNKNOWN: type 30, length 8, no value
set -euo pipefail

package=pyroute2==0.9.7
expected='ip route: 198.51.100.0/24 nhid 5 via 192.0.2.254 dev link0
RTA_NH_ID: None
RTA_GATEWAY: 192.0.2.254
UNKNOWN: type 30, length 8, no value'

cannot() {
    printf 'cannot be shown here: %s\n' "$1" >&2
    exit 2
}

# The second half: in a network namespace of its own.
if [ "${1:-}" = inside ]; then
    ip link add name link0 type veth peer name link1 || cannot "no veth pairs"
    ip address add 192.0.2.1/24 dev link0
    ip link set dev link1 up
    ip link set dev link0 up
    ip nexthop add id 5 via 192.0.2.254 dev link0 || cannot "no nexthop objects (Linux 5.3)"
    ip route add 198.51.100.0/24 nhid 5
    printf 'ip route: %s\n' "$(ip route show 198.51.100.0/24 | sed 's/ *$//')"
    exec "$2" - <<'PYTHON'
from pyroute2 import IPRoute

with IPRoute() as ipr:
    (route,) = [route for route in ipr.get_routes(table=254) if route.get("RTA_DST") == "198.51.100.0"]
print("RTA_NH_ID:", route.get("RTA_NH_ID"))
print("RTA_GATEWAY:", route.get("RTA_GATEWAY"))
for name, value in route["attrs"]:
    if name == "UNKNOWN":
        header = value["header"]
        rest = {key: item for key, item in value.items() if key != "header"}
        print(f"UNKNOWN: type {header['type']}, length {header['length']}, {rest or 'no value'}")
PYTHON
fi

for program in ip unshare python3; do
    command -v "$program" >/dev/null || cannot "no program $program"
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || cannot "python3 makes no venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$package" || cannot "$package cannot be installed"

unshare_flags=(--net)
[ "$(id -u)" -eq 0 ] || unshare_flags+=(--user --map-root-user)
unshare "${unshare_flags[@]}" true || cannot "no network namespace of its own"

printf '%s, %s, %s, Linux %s\n' "$package" "$(python3 --version)" "$(ip -V)" "$(uname -r)"
status=0
seen=$(unshare "${unshare_flags[@]}" bash "$0" inside "$folder/venv/bin/python") || status=$?
[ "$status" -ne 2 ] || exit 2
printf '%s\n' "$seen"
if [ "$status" -ne 0 ] || [ "$seen" != "$expected" ]; then
    printf 'this has changed; it was:\n%s\n' "$expected" >&2
    exit 1
fi
