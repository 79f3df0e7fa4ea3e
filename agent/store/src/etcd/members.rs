//! Owns the connections to the members and decides which member is asked.
//!
//! etcd-client's own balancing over several endpoints is not used: it keeps sending to a member whose host is
//! frozen, and waits for one whose certificate is wrong without ever saying so.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, GetOptions};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;

use super::config::{EtcdConfig, Timeouts};
use super::fault::{Fault, Kind, NoMember, Odd};
use super::tls;
use crate::error::{InvalidRequest, StoreError};

/// HTTP/2 pings on connections at rest. etcd ends connections that ping more often than every 5 s
/// (`--grpc-keepalive-min-time`), so the attempts' own deadlines find a dead member, not these.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3));
/// The first pause after a round in which no member answered; doubled up to the longest.
const PAUSE: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// A suspected member gets this part of the time for connecting.
const SUSPECT_SHARE: u32 = 3;

pub(super) struct Members {
    config: EtcdConfig,
    list: Vec<Member>,
}

struct Member {
    endpoint: String,
    state: Mutex<State>,
    /// Held while one task connects, so that others wait for it instead of connecting as well.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    /// When an attempt failed last; `None` after one that did not.
    suspected: Option<Instant>,
    made: u64,
}

#[derive(Clone)]
struct Link {
    number: u64,
    client: Client,
}

/// The end of a request's attempts.
pub(super) struct Exhausted {
    /// Whether some attempt may have been applied.
    pub(super) unclear: bool,
    pub(super) last: Fault,
    denied: Option<StoreError>,
    endpoints: String,
}

/// What to do after one attempt of a call.
pub(super) enum Turn<T> {
    Done(T),
    Again(Fault),
    Stop(Fault),
}

impl Member {
    fn state(&self) -> MutexGuard<'_, State> {
        // Fields are replaced whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, number: Option<u64>) {
        let mut state = self.state();
        state.suspected = Some(Instant::now());
        // Only the connection that failed is dropped, not a newer one.
        if state.link.as_ref().is_some_and(|link| Some(link.number) == number) {
            state.link = None;
        }
    }
}

impl Members {
    pub(super) async fn new(config: EtcdConfig) -> Result<Self, StoreError> {
        for endpoint in &config.endpoints {
            Endpoint::from_shared(endpoint.clone()).map_err(|_| {
                InvalidRequest::Configuration(format!(
                    "the etcd endpoint '{endpoint}' is not a valid address"
                ))
            })?;
        }
        let member = |endpoint: &String| Member {
            endpoint: endpoint.clone(),
            state: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        };
        let list = config.endpoints.iter().map(member).collect();
        let members = Self { config, list };
        members.certificates().await?;
        Ok(members)
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.config.timeouts
    }

    pub(super) fn endpoint(&self, index: usize) -> &str {
        &self.list[index].endpoint
    }

    /// The member to ask: the first that is not suspected, else the one suspected longest ago.
    pub(super) fn best(&self) -> usize {
        let by_suspicion = |index: &usize| self.list[*index].state().suspected;
        // `None` sorts before any time; the first of equals is taken.
        (0..self.list.len()).min_by_key(by_suspicion).unwrap_or(0)
    }

    pub(super) fn suspect(&self, index: usize) {
        self.list[index].failed(None);
    }

    async fn certificates(&self) -> Result<Option<tonic::transport::ClientTlsConfig>, StoreError> {
        let Some(files) = self.config.tls.clone() else { return Ok(None) };
        match tokio::task::spawn_blocking(move || tls::read(&files)).await {
            Ok(result) => result.map(Some),
            Err(error) => Err(StoreError::Unavailable {
                attempted: "read the certificates for etcd".to_owned(),
                source: Box::new(error),
            }),
        }
    }

    /// A new connection to a member, not shared with anybody.
    pub(super) async fn connect(&self, index: usize) -> Result<Client, Fault> {
        let mut wait = self.config.timeouts.connect;
        if self.list.len() > 1 && self.list[index].state().suspected.is_some() {
            // A member that is back answers a handshake in milliseconds; one that is frozen must not hold up
            // the others a second time.
            wait /= SUSPECT_SHARE;
        }
        match timeout(wait, Box::pin(self.connect_untimed(index))).await {
            Ok(result) => result,
            Err(_) => Err(Fault::new(Kind::NotApplied, Odd::Silent(wait))),
        }
    }

    async fn connect_untimed(&self, index: usize) -> Result<Client, Fault> {
        let (interval, patience) = KEEPALIVE;
        let mut endpoint = Endpoint::from_shared(self.endpoint(index).to_owned())
            .map_err(Fault::connecting)?
            .tcp_nodelay(true)
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(patience)
            .keep_alive_while_idle(true);
        let unreadable = |error| Fault::new(Kind::Denied, error);
        if let Some(tls) = self.certificates().await.map_err(unreadable)? {
            endpoint = endpoint.tls_config(tls).map_err(Fault::connecting)?;
        }
        let address = endpoint.uri().clone();
        let greeted = self.greet(endpoint).await;
        match (greeted, &self.config.tls) {
            (Err(fault), Some(files)) if fault.tls.is_none() && fault.kind != Kind::Denied => {
                let tls = tls::diagnose(&address, files).await;
                Err(Fault { tls, ..fault })
            }
            (greeted, _) => greeted,
        }
    }

    /// Connects, and asks for something that the member answers by itself: a connection on which nothing was
    /// ever answered cannot tell a commit that was refused at the door from one that was applied.
    async fn greet(&self, endpoint: Endpoint) -> Result<Client, Fault> {
        let before_any_commit = |fault: Fault| match fault.kind {
            Kind::Unclear => Fault { kind: Kind::NotApplied, ..fault },
            _ => fault,
        };
        let channel = endpoint.connect().await.map_err(Fault::connecting)?;
        let mut options = ConnectOptions::new().with_require_leader(true);
        if let Some(user) = &self.config.user {
            options = options.with_user(&user.name, &user.password).with_auto_token_refresh(true);
        }
        let client = Client::from_channel(Channel::Tonic(channel), Some(options)).await;
        let client = client.map_err(|error| before_any_commit(error.into()))?;
        let question = GetOptions::new().with_serializable().with_count_only();
        let asked = client.kv_client().get(self.config.root.as_str(), Some(question)).await;
        asked.map_err(|error| before_any_commit(error.into()))?;
        Ok(client)
    }

    async fn link(&self, index: usize) -> Result<Link, Fault> {
        let member = &self.list[index];
        if let Some(link) = member.state().link.clone() {
            return Ok(link);
        }
        let _turn = member.connecting.lock().await;
        if let Some(link) = member.state().link.clone() {
            return Ok(link);
        }
        let client = self.connect(index).await?;
        let mut state = member.state();
        state.made += 1;
        let link = Link { number: state.made, client };
        state.link = Some(link.clone());
        Ok(link)
    }

    /// One attempt at one member. A fault before the request was sent is never `Unclear`.
    async fn attempt<T, F>(
        &self,
        index: usize,
        limit: Duration,
        ask: &(impl Fn(Client) -> F + Sync),
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let silent = |kind| Fault::new(kind, Odd::Silent(limit));
        let started = Instant::now();
        let link = match timeout(limit, self.link(index)).await {
            Ok(Ok(link)) => link,
            Ok(Err(fault)) => {
                self.list[index].failed(None);
                return Err(fault);
            }
            Err(_) => {
                self.list[index].failed(None);
                return Err(silent(Kind::NotApplied));
            }
        };
        let rest = limit.saturating_sub(started.elapsed());
        let answer = timeout(rest, ask(link.client)).await.unwrap_or_else(|_| Err(silent(Kind::Unclear)));
        match &answer {
            Err(fault) if matches!(fault.kind, Kind::NotApplied | Kind::Unclear) => {
                self.list[index].failed(Some(link.number));
            }
            _ => self.list[index].state().suspected = None,
        }
        answer
    }

    /// Attempts at one member after another, until `judge` is content or the request's time is over.
    pub(super) async fn attempts<T, U, F>(
        &self,
        ask: impl Fn(Client) -> F + Sync,
        mut judge: impl FnMut(Result<T, Fault>) -> Turn<U>,
    ) -> Result<U, Exhausted>
    where
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let Timeouts { attempt, request, .. } = self.config.timeouts;
        let deadline = Instant::now() + request;
        let mut unclear = false;
        let mut pause = PAUSE;
        let mut denials = 0;
        for turn in 1.. {
            let index = self.best();
            let round = u32::try_from((turn - 1) / self.list.len()).unwrap_or(u32::MAX).min(8);
            let longer = 2_u32.pow(round.saturating_sub(1));
            let limit = (attempt * longer).min(deadline.saturating_duration_since(Instant::now()));
            let answer = Box::pin(self.attempt(index, limit, &ask)).await;
            let (fault, stop) = match judge(answer) {
                Turn::Done(value) => return Ok(value),
                Turn::Again(fault) => (fault, false),
                Turn::Stop(fault) => (fault, true),
            };
            unclear |= fault.kind == Kind::Unclear;
            tracing::debug!(member = %self.endpoint(index), turn, unclear, %fault, "attempt at a member failed");
            let denied = self.denial(index, &fault);
            denials = if denied.is_some() { denials + 1 } else { 0 };
            // One member with a wrong certificate is passed by; if all refuse, waiting does not help.
            let refused = denied.is_some() && (fault.kind == Kind::Denied || denials >= self.list.len());
            let round_over = turn % self.list.len() == 0;
            if stop || refused || Instant::now() + if round_over { pause } else { Duration::ZERO } >= deadline
            {
                let endpoints = self.config.endpoints.join(", ");
                return Err(Exhausted { unclear, last: fault, denied, endpoints });
            }
            if round_over {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        unreachable!("the loop above has no end of its own")
    }

    /// What an operator must know about a member that does not let this client in.
    fn denial(&self, index: usize, fault: &Fault) -> Option<StoreError> {
        let endpoint = self.endpoint(index);
        if let Some(error) = &fault.tls {
            return Some(tls::handshake(endpoint, self.config.tls.as_ref(), error.clone()));
        }
        if fault.kind != Kind::Denied {
            return None;
        }
        if let Some(StoreError::Denied { problem, advice, file, source }) = fault.source.downcast_ref() {
            let source = source.as_ref().map(|source| source.to_string().into());
            return Some(StoreError::Denied {
                problem: problem.clone(),
                advice: advice.clone(),
                file: file.clone(),
                source,
            });
        }
        let user = self.config.user.as_ref().map_or_else(
            || "this client, for which no user is configured".to_owned(),
            |user| format!("the user '{}'", user.name),
        );
        Some(StoreError::Denied {
            problem: format!("{endpoint} refused {user}"),
            advice: format!(
                "see the user, the password and that its role may read and write below '{}'",
                self.config.root
            ),
            file: None,
            source: Some(fault.to_string().into()),
        })
    }

    /// A call that may be repeated freely.
    pub(super) async fn read<T, F>(
        &self,
        attempted: &(dyn Fn() -> String + Sync),
        ask: impl Fn(Client) -> F + Sync,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let judge = |answer: Result<T, Fault>| match answer {
            Ok(value) => Turn::Done(value),
            Err(fault) => proceed(fault),
        };
        self.attempts(ask, judge).await.map_err(|end| end.into_error(attempted(), false))
    }
}

/// Whether another member may be asked after this fault.
pub(super) fn proceed<T>(fault: Fault) -> Turn<T> {
    match fault.kind {
        Kind::NotApplied | Kind::Unclear => Turn::Again(fault),
        Kind::Compacted | Kind::Denied | Kind::Wrong | Kind::Full => Turn::Stop(fault),
    }
}

impl Exhausted {
    /// The caller's error. `commit`: the call would have changed something.
    pub(super) fn into_error(self, attempted: String, commit: bool) -> StoreError {
        let Self { unclear, last, denied, endpoints } = self;
        if !(commit && unclear) {
            if let Some(denied) = denied {
                return denied;
            }
            if last.kind == Kind::Wrong {
                return InvalidRequest::Refused(last.to_string()).into();
            }
        }
        let source = Box::new(NoMember { endpoints, source: last.source });
        if commit && unclear {
            StoreError::Ambiguous { attempted, source }
        } else {
            StoreError::Unavailable { attempted, source }
        }
    }
}
