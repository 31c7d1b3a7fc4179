# shellcheck shell=sh
# install_tools: the programs that the tests meet as peers or drive. As root on Debian and its
# children they are installed; elsewhere the missing ones are named, and their tests skip.

# command:packages
TOOLS='
ssh:openssh-client
sshd:openssh-server
dropbear:dropbear-bin
plink:putty-tools
curl:curl
psql:postgresql
chromium:chromium
ip:iproute2
nft:nftables
iperf3:iperf3
ps:procps
tcpdump:tcpdump
ethtool:ethtool
vagrant:vagrant vagrant-libvirt
mmdebstrap:mmdebstrap
nc:netcat-openbsd
ncat:ncat
microsocks:microsocks
tor:tor
proxychains4:proxychains4
torsocks:torsocks
'

# missing_packages TABLE
missing_packages() {
    echo "$1" | while IFS=: read -r command packages; do
        [ -z "$command" ] || command -v "$command" >/dev/null || printf '%s ' "$packages"
    done
}

missing_python() {
    if [ ! -x .venv/bin/python ] && ! python3 -c 'import ensurepip' 2>/dev/null; then
        printf 'python3 python3-venv '
    fi
}

# A package that brings a service must not start it: the tests run their own sshd, on their own port.
apt_install() {
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT INT TERM
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    status=0
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 "$@" </dev/null || status=$?
    if [ -d /run/systemd/system ] && [ "$had_sshd" = no ]; then
        systemctl disable ssh.service ssh.socket || true
    fi
    return $status
}

install_tools() {
    # The list is words.
    # shellcheck disable=SC2046
    install_packages test $(missing_packages "$TOOLS") $(missing_python)
}

# install_packages NAME PACKAGE…: whose messages they are, and what to install.
install_packages() {
    name=$1
    shift
    packages=$*
    [ -n "$packages" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "$name: not installed, so what needs it is left out. To have it all (Debian, Ubuntu):"
        echo "    sudo apt-get install --no-install-recommends $packages"
        return 0
    fi
    had_sshd=no
    ! command -v sshd >/dev/null || had_sshd=yes
    log=$(mktemp)
    echo "$name: installing $packages"
    apt-get update >"$log" 2>&1 || true # an old list may do
    for package in $packages; do
        apt-cache show "$package" >/dev/null 2>&1 || {
            echo "$name: this system has no package $package; what needs it is left out"
            packages=$(echo "$packages" | tr ' ' '\n' | grep -vxF "$package" | tr '\n' ' ')
        }
    done
    # In a subshell: its trap is its own. The list is words.
    # shellcheck disable=SC2086
    if [ -n "${packages% }" ] && ! (apt_install $packages) >>"$log" 2>&1; then
        tail -n 5 "$log"
        echo "$name: apt-get could not install them; what needs them is left out"
    fi
    rm -f "$log"
}
