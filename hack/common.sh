# Shared by the scripts in this folder: where the tree is, root and Debian, packages, a Rust toolchain.
# Sourced, never run.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }

fail() {
	say "$(basename "$0"): $*"
	exit 1
}

need_root_on_debian() {
	[ "$(id -u)" = 0 ] || fail "run it as root: it makes mounts, cgroups and network links"
	command -v apt-get >/dev/null || fail "this machine has no apt-get: Debian 12 or later is needed"
}

# need_packages PACKAGE...: installs those that are missing, and says which.
need_packages() {
	local missing=() package
	for package in "$@"; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
	done
	[ "${#missing[@]}" = 0 ] && return
	say "installing: ${missing[*]}"
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends \
		"${missing[@]}" >&2
}

# A toolchain of rust-toolchain.toml's release or later. Where there is none, Debian's: its newest is in packages of their
# own, those that browsers are built with; or rustup, where the suite has that.
RUST_PACKAGES=(cargo-web rustc-web rustfmt-web rust-web-clippy)
need_rust() {
	[ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
	local wanted have
	wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
	if ! command -v cargo >/dev/null; then
		apt-get -qq update
		have=$(apt-cache policy "${RUST_PACKAGES[0]}" | sed -n 's/^ *Candidate: //p')
		if [[ $have == [0-9]* ]] && dpkg --compare-versions "$have" ge "$wanted"; then
			need_packages "${RUST_PACKAGES[@]}"
		elif apt-cache show rustup >/dev/null 2>&1; then
			need_packages rustup
		else
			fail "there is no Rust toolchain, and this Debian has none of $wanted: install rustup, then run this again"
		fi
	fi
	# rustup 1.28 and later no longer fetch the toolchain by themselves.
	if command -v rustup >/dev/null && ! rustup toolchain list | grep -q "^$wanted"; then
		say "fetching Rust $wanted"
		rustup toolchain install "$wanted" --profile minimal --component rustfmt --component clippy >&2
	fi
	have=$(cargo --version | cut -d' ' -f2)
	dpkg --compare-versions "$have" ge "$wanted" ||
		fail "cargo $have is too old, $wanted is needed: install rustup, then run this again"
}

# What compiling needs, and what a node needs to run pods.
BUILD_PACKAGES=(build-essential protobuf-compiler ca-certificates)
NODE_PACKAGES=(containerd runc nftables busybox-static iproute2 curl)
# What nodes of their own kernels are made with.
VM_PACKAGES=(mmdebstrap e2fsprogs xz-utils util-linux)
