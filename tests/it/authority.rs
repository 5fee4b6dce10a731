//! A certificate authority made for one test, and a server that it vouches for.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// All in PEM.
pub struct Authority {
    /// The authority's own certificate, for those who are to trust it.
    pub certificate: String,
    /// Certificate of a server on `localhost`.
    pub server_certificate: String,
    /// Key of that server.
    pub server_key: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A certificate by a name that is its own would count as self-signed.
        authority
            .distinguished_name
            .push(DnType::CommonName, "an authority for tests");
        let certificate = authority.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(authority, key);
        let key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec!["localhost".to_owned()])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        Self {
            certificate,
            server_certificate: server.pem(),
            server_key: key.serialize_pem(),
        }
    }

    /// Both in one text, as Kafka's keystores have it.
    pub fn key_and_certificate(&self) -> String {
        format!("{}{}", self.server_key, self.server_certificate)
    }
}
