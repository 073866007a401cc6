//! Suffixes below which names belong to whoever asks for one: the public suffix list, and what it lacks (N5, N6).
//!
//! The list holds services that asked to be in it. Where a service did not, the names below its domain look like one
//! owner's: a wildcard would be offered for them, and open a stranger's store of files or catcher of requests as well.
//! What is added here gives every customer a name: stores, machines, functions, sites and endpoints of theirs, tunnels,
//! and names for any address. It can't be complete: what no rule names is refused anyway.

use std::iter;

/// Suffixes as they are, in order.
#[rustfmt::skip]
const EXACT: [&str; 134] = [
    "4everland.app", "a.free.pinggy.link", "a.pinggy.link", "adaptable.app", "algolia.net",
    "algolianet.com", "apigw.yandexcloud.net", "app.github.dev", "arweave.net", "atlassian.net",
    "auth0.com", "azure-devices.net", "azurecr.io", "b-cdn.net", "bc.googleusercontent.com",
    "beeceptor.com", "bkt.clouddn.com", "blob.vercel-storage.com", "bore.pub", "burpcollaborator.net",
    "canarytokens.com", "ceye.io", "chickenkiller.com", "clients.your-server.de", "cloud.databricks.com",
    "cloudflareaccess.com", "cognitiveservices.azure.com", "commondatastorage.googleapis.com",
    "contaboserver.net", "containers.yandexcloud.net", "cpolar.cn", "cpolar.top", "crabdance.com",
    "cyclic.app", "database.windows.net", "devtunnels.ms", "dfs.core.windows.net", "dnslog.cn",
    "documents.azure.com", "doserverless.co", "email.webhook.site", "eu.r2.cloudflarestorage.com",
    "fedramp.r2.cloudflarestorage.com", "fermyon.app", "file.myqcloud.com", "firebaseio.com",
    "fly.storage.tigris.dev", "free.beeceptor.com", "free.pinggy.link", "freshdesk.com",
    "gateway.storjshare.io", "github.dev", "glitch.me", "gradio.live", "hb.bizmrg.com", "ic0.app",
    "ignorelist.com", "ingest.de.sentry.io", "ingest.sentry.io", "ingest.us.sentry.io", "interact.sh",
    "jfrog.io", "jumpingcrab.com", "koyeb.app", "kxcdn.com", "lhr.life", "lhr.rocks", "loca.lt",
    "localhost.run", "localtunnel.me", "mockbin.io", "modal.run", "mongodb.net", "mooo.com",
    "my.salesforce.com", "my.site.com", "mypinata.cloud", "natapp.cc", "nip.io", "oast.fun", "oast.live",
    "oast.me", "oast.online", "oast.pro", "oast.site", "oastify.com", "okta.com", "on.fleek.co",
    "openai.azure.com", "packetriot.net", "pagekite.me", "pinggy.link", "prod.colab.dev",
    "proxy.beeceptor.com", "public.blob.vercel-storage.com", "queue.core.windows.net",
    "r2.cloudflarestorage.com", "requestbin.net", "requestcatcher.com", "rtfd.io",
    "s3-accelerate.amazonaws.com", "s3-accelerate.dualstack.amazonaws.com", "s3.filebase.com",
    "s3.wasabisys.com", "search.windows.net", "serveo.net", "serveousercontent.com", "service-now.com",
    "service.signalr.net", "share.zrok.io", "sharedwithexpose.com", "sharepoint.com", "shares.zrok.io",
    "shinyapps.io", "snowflakecomputing.com", "sslip.io", "storage.googleapis.com", "strangled.net",
    "table.core.windows.net", "traefik.me", "upcloudobjects.com", "vault.azure.net", "visualstudio.com",
    "vps.ovh.net", "webhook.site", "webhookrelay.com", "webpubsub.azure.com", "weebly.com", "wordpress.com",
    "xip.io", "z01.azurefd.net", "z02.azurefd.net", "z03.azurefd.net", "zendesk.com",
];

/// Suffixes in which a `*` stands for any one label.
#[rustfmt::skip]
const STARRED: [&str; 53] = [
    "*.*.endpoints.huggingface.cloud", "*.*.storage.azure.net", "*.aliyuncs.com", "*.aoss.amazonaws.com",
    "*.apigw.yandexcloud.net", "*.auth0.com", "*.azurecontainerapps.io", "*.azuredatabricks.net",
    "*.bcebos.com", "*.cf.appdomain.cloud", "*.cloudapp.azure.com", "*.cloudshell.dev",
    "*.cloudworkstations.dev", "*.codeengine.appdomain.cloud", "*.colab.googleusercontent.com",
    "*.contabostorage.com", "*.cpolar.top", "*.devtunnels.ms", "*.dream.io", "*.es.amazonaws.com",
    "*.exo.io", "*.fc.aliyuncs.com", "*.firebasedatabase.app", "*.gitpod.io", "*.ksyuncs.com",
    "*.log.aliyuncs.com", "*.logic.azure.com", "*.pipedream.net", "*.qiniucs.com", "*.sharedwithexpose.com",
    "*.ufileos.com", "*.volces.com", "*.web.core.windows.net", "*.your-objectstorage.com",
    "appsync-api.*.amazonaws.com", "appsync-realtime-api.*.amazonaws.com",
    "compat.objectstorage.*.oraclecloud.com", "cos-website.*.myqcloud.com", "cos.*.myqcloud.com",
    "cos.*.tencentcos.cn", "d.codeartifact.*.amazonaws.com", "dkr.ecr.*.amazonaws.com",
    "iot.*.amazonaws.com", "objectstorage.*.oraclecloud.com", "obs.*.myhuaweicloud.com",
    "s3.*.backblazeb2.com", "s3.*.cloud-object-storage.appdomain.cloud", "s3.*.cloud.ovh.net",
    "s3.*.io.cloud.ovh.net", "s3.*.perf.cloud.ovh.net", "s3.*.qiniucs.com", "s3.*.wasabisys.com",
    "server.transfer.*.amazonaws.com",
];

/// Whose the names below a suffix are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::policy) enum Kind {
    /// Of whoever registers a domain.
    Public,
    /// Of the users of a service.
    Shared,
}

/// Gives the longest suffix of a name, which may be the name itself; a top-level domain that no list knows counts as
/// one.
pub(in crate::policy) fn suffix(name: &str) -> Option<(&str, Kind)> {
    let listed = psl::suffix(name.as_bytes())?;
    let kind = match listed.typ() {
        Some(psl::Type::Private) => Kind::Shared,
        Some(psl::Type::Icann) | None => Kind::Public,
    };
    let listed = &name[name.len() - listed.as_bytes().len()..];
    let own = iter::successors(Some(name), |name| Some(name.split_once('.')?.1)).find(|name| is_own(name));
    match own {
        Some(own) if own.len() >= listed.len() => Some((own, Kind::Shared)),
        _ => Some((listed, kind)),
    }
}

/// Gives the suffix of a name and the label before it.
pub(super) fn registrable(name: &str) -> Option<&str> {
    let (suffix, _) = suffix(name)?;
    let before = name.strip_suffix(suffix)?.strip_suffix('.')?;
    Some(&name[before.rfind('.').map_or(0, |dot| dot + 1)..])
}

fn is_own(name: &str) -> bool {
    EXACT.binary_search(&name).is_ok() || STARRED.iter().any(|suffix| fits(suffix, name))
}

/// Compares label by label from the end, where most differ.
fn fits(suffix: &str, name: &str) -> bool {
    let (mut labels, mut own) = (name.rsplit('.'), suffix.rsplit('.'));
    loop {
        match (own.next(), labels.next()) {
            (None, None) => return true,
            (Some(own), Some(label)) if own == "*" || own == label => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::DomainName;

    #[test]
    fn n6_the_lists_are_in_order_and_hold_what_the_public_suffix_list_lacks() {
        assert!(EXACT.is_sorted() && STARRED.is_sorted());
        for suffix in EXACT.iter().chain(&STARRED) {
            let name = suffix.replace('*', "x");
            assert_eq!(DomainName::parse(&name).unwrap().as_str(), name);
            let below = format!("me.{name}");
            let listed = psl::suffix_str(&below).unwrap();
            assert!(listed.len() < name.len(), "`{suffix}` is needless: `{listed}` is listed");
        }
    }

    #[test]
    fn n5_n6_names_below_shared_hosting_are_their_users() {
        for (name, shared, registrable) in [
            ("evil.storage.googleapis.com", "storage.googleapis.com", Some("evil.storage.googleapis.com")),
            ("acct.queue.core.windows.net", "queue.core.windows.net", Some("acct.queue.core.windows.net")),
            ("a.z6.web.core.windows.net", "z6.web.core.windows.net", Some("a.z6.web.core.windows.net")),
            (
                "a.z01.blob.storage.azure.net",
                "z01.blob.storage.azure.net",
                Some("a.z01.blob.storage.azure.net"),
            ),
            (
                "x.b.s3.us-west-000.backblazeb2.com",
                "s3.us-west-000.backblazeb2.com",
                Some("b.s3.us-west-000.backblazeb2.com"),
            ),
            ("id.r2.cloudflarestorage.com", "r2.cloudflarestorage.com", Some("id.r2.cloudflarestorage.com")),
            (
                "b.oss-cn-hangzhou.aliyuncs.com",
                "oss-cn-hangzhou.aliyuncs.com",
                Some("b.oss-cn-hangzhou.aliyuncs.com"),
            ),
            (
                "b.cos.ap-guangzhou.myqcloud.com",
                "cos.ap-guangzhou.myqcloud.com",
                Some("b.cos.ap-guangzhou.myqcloud.com"),
            ),
            ("x-8080.euw.devtunnels.ms", "euw.devtunnels.ms", Some("x-8080.euw.devtunnels.ms")),
            ("eo1.m.pipedream.net", "m.pipedream.net", Some("eo1.m.pipedream.net")),
            ("me.b-cdn.net", "b-cdn.net", Some("me.b-cdn.net")),
            ("me.firebaseio.com", "firebaseio.com", Some("me.firebaseio.com")),
            ("me.loca.lt", "loca.lt", Some("me.loca.lt")),
            ("webhook.site", "webhook.site", None),
            // What the public suffix list has.
            ("me.trycloudflare.com", "trycloudflare.com", Some("me.trycloudflare.com")),
            ("me.ngrok-free.app", "ngrok-free.app", Some("me.ngrok-free.app")),
            ("a.b.s3.amazonaws.com", "s3.amazonaws.com", Some("b.s3.amazonaws.com")),
        ] {
            let parsed = DomainName::parse(name).unwrap();
            assert_eq!((parsed.shared_suffix(), parsed.registrable()), (Some(shared), registrable), "{name}");
        }
        for (name, registrable) in [
            ("us-west-000.backblazeb2.com", "backblazeb2.com"),
            ("www.sentry.io", "sentry.io"),
            ("xloca.lt", "xloca.lt"),
            ("loca.lt.example.com", "example.com"),
            ("sts.amazonaws.com", "amazonaws.com"),
            ("a.example.corp", "example.corp"),
        ] {
            let parsed = DomainName::parse(name).unwrap();
            assert_eq!((parsed.shared_suffix(), parsed.registrable()), (None, Some(registrable)), "{name}");
        }
    }

    proptest! {
        #[test]
        fn n5_own_suffixes_only_narrow_what_the_list_says(
            labels in "([a-z0-9]{1,3}\\.){0,3}",
            end in proptest::sample::select(vec!["com", "co.uk", "github.io", "s3.amazonaws.com", "webhook.site", "a.devtunnels.ms", "corp"]),
        ) {
            let name = format!("{labels}{end}");
            let own = registrable(&name);
            if let Some(own) = own {
                prop_assert!(own.len() >= psl::domain_str(&name).unwrap().len());
                let is_below = name.strip_suffix(own).unwrap();
                prop_assert!(is_below.is_empty() || is_below.ends_with('.'));
            }
            prop_assert!(own.is_some() || psl::domain_str(&name).is_none() || is_own(&name));
        }
    }
}
