#include "nbd/connection.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <mutex>
#include <thread>
#include <utility>

#include "base/check.h"
#include "io/iov.h"

namespace platter::nbd {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kChunk = 256 * kKiB;   // of the outbox
constexpr size_t kSendAt = 128 * kKiB;  // bytes: the client can begin while we go on
constexpr size_t kMostParts = 64;       // of one send

// A write this long, or one that took this long, is not done between two others.
constexpr uint64_t kMostHere = 256 * kKiB;
constexpr auto kSlow = std::chrono::microseconds(300);
constexpr unsigned kAfterSlow = 64;  // writes handed over before another is tried here

// How long a client that answers at once is waited for without sleeping, how often it is looked for
// meanwhile (each time takes the socket's lock), and after how many waits at most it gets another
// chance when it did not come.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr auto kBetweenLooks = std::chrono::microseconds(2);
constexpr unsigned kMostSkipped = 1024;

// Connections of the process. Time of a processor may be spent on being quick, by waiting awake and
// by copying, as long as nobody else has a use for it; half of them are for the clients.
std::atomic<unsigned> connections{0};
bool ProcessorsToSpare() {
  static const unsigned some = std::thread::hardware_concurrency() / 2;
  return connections.load(std::memory_order_relaxed) <= some;
}

}  // namespace

Connection::Connection(Fd socket, std::string peer, Exports& exports, Workers& workers,
                       const ConnectionOptions& options)
    : socket_(std::move(socket)),
      peer_(std::move(peer)),
      workers_(workers),
      options_(options),
      handshake_deadline_(Clock::now() + options.handshake_limit),
      channel_(MakePlainChannel(socket_.get())),
      out_(kChunk),
      session_(exports, options.session, out_),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

Connection::~Connection() { CHECK(flying_ == 0); }

void Connection::Run() {
  // sendfile cannot be told that a client that is gone is no reason to end the process.
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
  connections.fetch_add(1, std::memory_order_relaxed);
  Result<> served = Serve();
  connections.fetch_sub(1, std::memory_order_relaxed);
  if (served) channel_->Close();
  // Workers still refer to this connection.
  while (flying_ > 0) {
    pollfd wake{wake_.get(), POLLIN, 0};
    poll(&wake, 1, -1);
    eventfd_t ignored;
    eventfd_read(wake_.get(), &ignored);
    TakeDone();
  }
  std::string why = served ? session_.failure() : served.error().text();
  if (!why.empty() && options_.log) options_.log(peer_ + ": " + Printable(why, 4096));
}

void Connection::Finish() {
  stopping_.store(true);
  // Both ways of waiting end: recv sees the end of the stream, poll the event.
  shutdown(socket_.get(), SHUT_RD);
  eventfd_write(wake_.get(), 1);
}

void Connection::Abort() {
  aborted_.store(true);
  Finish();
  shutdown(socket_.get(), SHUT_RDWR);
}

Result<> Connection::Serve() {
  while (true) {
    TakeDone();
    if (stopping_.load(std::memory_order_relaxed)) ending_ = true;
    TRY(HandleEvents());
    TRY(Send());
    if (!hungry_ && !Full()) continue;  // what was sent has made room
    const bool sent = out_.empty() && !channel_->sending();
    if (ending_ && hungry_ && flying_ == 0 && sent) return {};
    TRY(Wait());
  }
}

// Deals with what the session has, as far as the window allows.
Result<> Connection::HandleEvents() {
  hungry_ = false;
  while (!Full() || (flying_ == 0 && out_.empty())) {
    switch (session_.Next()) {
      case Session::Event::kMore: hungry_ = true; return {};
      case Session::Event::kRequest: TRY(Handle(session_.request())); break;
      case Session::Event::kStartTls: TRY(StartTls()); break;
      case Session::Event::kEnd: ending_ = hungry_ = true; return {};
    }
    if (out_.size() >= kSendAt) TRY(Send());
  }
  return {};
}

Result<> Connection::Handle(Request& request) {
  request.aborted = &aborted_;
  out_.AcceptFiles(channel_->sends_files() && !ProcessorsToSpare());
  if (TryAnswer(*session_.chosen(), request, out_)) return {};
  if (!WorthDoingHere(request)) {
    HandOver(std::move(request));
    return {};
  }
  // The client need not wait for the replies before this one.
  const bool quick = request.command == kCmdWrite && !request.Has(kFlagFua);
  if (!out_.empty() && !quick) TRY(Send());
  AnswerHere(request);
  return {};
}

bool Connection::WorthDoingHere(const Request& request) {
  if (flying_ == 0 && session_.idle()) return true;
  // The workers are everybody's: no client waits behind what others have asked of them.
  if (workers_.busy()) return true;
  if (request.command != kCmdWrite || request.Has(kFlagFua)) return false;
  if (request.payload.size() > kMostHere) return false;
  if (writes_to_hand_over_ == 0) return true;
  --writes_to_hand_over_;
  return false;
}

void Connection::AnswerHere(const Request& request) {
  const auto start = Clock::now();
  Answer(*session_.chosen(), request, out_, options_.error_log);
  if (request.command == kCmdWrite && Clock::now() - start > kSlow) {
    writes_to_hand_over_ = kAfterSlow;
  }
}

void Connection::HandOver(Request&& request) {
  request.Own();
  const uint64_t cost = CostOf(request);
  ++flying_;
  flying_bytes_ += cost;
  session_.chosen()->counters.waited.fetch_add(1, std::memory_order_relaxed);
  workers_.Submit([this, cost, request = std::move(request), of = session_.chosen()]() mutable {
    Done done{cost, Outbox()};
    Answer(*of, request, done.reply, options_.error_log);
    request.memory = {};
    std::scoped_lock lock(mutex_);
    // Woken with the lock held: once it is free, this connection may be gone.
    if (done_.empty()) eventfd_write(wake_.get(), 1);
    done_.push_back(std::move(done));
  });
}

void Connection::TakeDone() {
  if (flying_ == 0) return;
  std::deque<Done> done;
  {
    std::scoped_lock lock(mutex_);
    done.swap(done_);
  }
  for (Done& one : done) {
    --flying_;
    flying_bytes_ -= one.cost;
    out_.Take(std::move(one.reply));
  }
}

// As much as the socket takes now.
Result<> Connection::Send() {
  std::array<iovec, kMostParts> parts;
  while (!out_.empty() || channel_->sending()) {
    size_t sent = 0;
    if (const FileBytes* file = out_.FrontFile()) {
      sent = TRY(channel_->SendFile(*file));
    } else {
      const auto front = std::span(parts).first(out_.Front(parts));
      sent = TRY(channel_->Send(front, IovLength(front) < out_.size()));
    }
    if (sent == 0) return {};
    out_.Consume(sent);
  }
  return {};
}

// Everything: only in the handshake, where little is sent and nothing else is in flight.
Result<> Connection::SendAll() {
  while (true) {
    TRY(Send());
    if (out_.empty() && !channel_->sending()) return {};
    if (!TRY(WaitFor(channel_->fd(), POLLOUT, handshake_deadline_))) {
      return Fail(Code::kIo, "the handshake took too long");
    }
  }
}

// True if something came, or the end of the stream.
Result<bool> Connection::Receive(bool wait) {
  auto count = TRY(channel_->Receive(session_.Room(), wait));
  if (!count) return false;
  if (*count == 0) ending_ = true;
  session_.Received(*count);
  return true;
}

// As Receive, waiting for a short time and awake, if that has been worth it: putting a thread to
// sleep and waking it costs each side more than a short request takes.
Result<bool> Connection::ReceiveSoon() {
  if (spins_to_skip_ > 0) {
    --spins_to_skip_;
    return false;
  }
  auto now = Clock::now();
  for (const auto end = now + kSpin; now < end && ProcessorsToSpare();) {
    if (TRY(Receive(false))) {
      next_skip_ = 1;
      return true;
    }
    for (const auto next = now + kBetweenLooks; now < next;) now = Clock::now();
  }
  spins_to_skip_ = next_skip_;
  next_skip_ = std::min(2 * next_skip_, kMostSkipped);
  return false;
}

int Connection::PollTimeout() const {
  if (session_.transmitting()) return -1;
  auto left = std::chrono::ceil<std::chrono::milliseconds>(handshake_deadline_ - Clock::now());
  return static_cast<int>(std::max<int64_t>(left.count(), 0));
}

// Until bytes have come, if they may, or can go, or a worker is done.
Result<> Connection::Wait() {
  const bool may_receive = hungry_ && !ending_, sending = !out_.empty() || channel_->sending();
  const bool nothing_else = flying_ == 0 && !sending && session_.transmitting();
  const int timeout = PollTimeout();
  if (timeout == 0) return Fail(Code::kIo, "the handshake took too long");
  // First, since TLS may hold bytes that poll does not know of.
  if (may_receive && nothing_else) {
    if (TRY(ReceiveSoon()) || TRY(Receive(true))) return {};
  } else if (may_receive && TRY(Receive(false))) {
    return {};
  }
  const short wanted = static_cast<short>((may_receive ? POLLIN : 0) | (sending ? POLLOUT : 0));
  std::array<pollfd, 2> polled{pollfd{wanted ? channel_->fd() : -1, wanted, 0},
                               pollfd{wake_.get(), POLLIN, 0}};
  if (poll(polled.data(), polled.size(), timeout) < 0 && errno != EINTR) {
    return FailErrno(errno, "waiting for a client");
  }
  eventfd_t ignored;
  if (polled[1].revents != 0) eventfd_read(wake_.get(), &ignored);
  return {};
}

Result<> Connection::StartTls() {
  TRY(SendAll());
  channel_ = TRY_AS("TLS", options_.tls->Accept(socket_.get(), handshake_deadline_));
  session_.TlsStarted();
  return {};
}

}  // namespace platter::nbd
