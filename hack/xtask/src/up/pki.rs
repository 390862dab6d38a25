//! Certificates for the node of `hack/up`: one that the agent serves with and one that its owner's
//! commands log in with, so that nobody else on the machine can read logs or exec through port 10250.
//!
//! Made once; the authority's key is thrown away after signing the two.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::tree;

/// Where the certificates lie.
#[derive(Debug, Clone)]
pub(super) struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Finds the certificates in `dir`, or makes all of them when one is missing.
    pub(super) fn ensure(dir: &Path) -> Result<Self> {
        let this = Self { dir: dir.to_path_buf() };
        let files = [this.ca(), this.server_cert(), this.server_key(), this.client_cert(), this.client_key()];
        if !files.iter().all(|file| file.exists()) {
            this.make().with_context(|| format!("make certificates in {}", dir.display()))?;
        }
        Ok(this)
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    pub(super) fn server_cert(&self) -> PathBuf {
        self.dir.join("server.crt")
    }

    pub(super) fn server_key(&self) -> PathBuf {
        self.dir.join("server.key")
    }

    pub(super) fn client_cert(&self) -> PathBuf {
        self.dir.join("client.crt")
    }

    pub(super) fn client_key(&self) -> PathBuf {
        self.dir.join("client.key")
    }

    fn make(&self) -> Result<()> {
        let mut ca = named("stevedore-up-ca", Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca_key = KeyPair::generate()?;
        let ca_text = ca.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(ca, ca_key);

        let mut server = named("stevedore-up", vec!["localhost".into(), "127.0.0.1".into()])?;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(server, &issuer, &self.server_cert(), &self.server_key())?;
        let mut client = named("stevedore-up-owner", Vec::new())?;
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(client, &issuer, &self.client_cert(), &self.client_key())?;
        // Last: a run that is cut short before this makes everything anew.
        tree::write_atomic(&self.ca(), ca_text.as_bytes())
    }

    fn sign(
        &self,
        params: CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
        cert_file: &Path,
        key_file: &Path,
    ) -> Result<()> {
        let key = KeyPair::generate()?;
        let _remade = fs::remove_file(self.ca());
        // The folder is closed before the key is in it.
        fs::create_dir_all(&self.dir)?;
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))?;
        tree::write_atomic(key_file, key.serialize_pem().as_bytes())?;
        fs::set_permissions(key_file, fs::Permissions::from_mode(0o600))?;
        tree::write_atomic(cert_file, params.signed_by(&key, issuer)?.pem().as_bytes())
    }
}

fn named(name: &str, alternatives: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(alternatives)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_made_once_and_again_when_one_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(&dir.path().join("pki")).unwrap();
        let first = fs::read(pki.client_cert()).unwrap();
        Pki::ensure(&dir.path().join("pki")).unwrap();
        assert_eq!(fs::read(pki.client_cert()).unwrap(), first);
        assert_eq!(fs::metadata(pki.client_key()).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_file(pki.ca()).unwrap();
        Pki::ensure(&dir.path().join("pki")).unwrap();
        assert_ne!(fs::read(pki.client_cert()).unwrap(), first);
    }
}
