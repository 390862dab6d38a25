//! The container hash: what tells a later incarnation whether a running container was made from the spec it has now.

use super::gojson::Object;
use crate::api::Container;

/// The value of `io.kubernetes.container.hash`: lower-case hex, not padded.
///
/// Upstream hashes (FNV-1a, 32 bits) the printed form of the JSON bytes of the fields that cannot change in place,
/// image and name. Containers that the stock kubelet made keep running because the text is the same.
pub fn container_hash(container: &Container) -> String {
    let json =
        Object::default().text("image", container.image.as_deref()).text("name", Some(&container.name)).end();
    let bytes: Vec<String> = json.bytes().map(|b| b.to_string()).collect();
    format!("{:x}", fnv1a(format!("([]uint8)[{}]", bytes.join(" ")).as_bytes()))
}

fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_what_the_stock_kubelet_writes() {
        let container = Container {
            name: "c".into(),
            image: Some("registry.k8s.io/e2e-test-images/agnhost:2.63.0".into()),
            args: Some(vec!["not hashed".into()]),
            ..Container::default()
        };
        assert_eq!(container_hash(&container), "8cd7e80f");
    }
}
