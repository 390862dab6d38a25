//! Turns `proto/cri.proto` into messages, clients and servers without needing a `protoc` on the machine.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/cri.proto");
    let descriptors = protox::compile(["cri.proto"], ["proto"])?;
    let mut prost = tonic_prost_build::Config::new();
    // Credentials must not reach a log: `v1::AuthConfig` gets a hand-written `Debug`.
    prost.skip_debug(["runtime.v1.AuthConfig"]);
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // The client brings its own connection (`link`): tonic's transport stays out of the binary.
        .build_transport(false)
        // Ordered maps: what is sent and recorded is the same bytes every time.
        .btree_map(".")
        .compile_fds_with_config(descriptors, prost)?;
    Ok(())
}
